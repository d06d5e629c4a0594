"""Imports point one way, and a file is read in one sitting."""

import ast
from collections.abc import Iterator
from pathlib import Path

import hf_proxadam

PACKAGE = Path(hf_proxadam.__file__).parent
# What each part may import, of the package and of the heavy libraries.
ALLOWED = {
    "optim": {"optim"},
    "trainer": {"optim", "trainer"},
    "scales": {"scales", "atomic"},
    "tasks": {"tasks", "atomic"},
    "study": {"", "optim", "trainer", "scales", "tasks", "study", "atomic"},  # "": importing it registers the names
    "report": {"report", "study.statistics", "study.store", "scales", "atomic", "__version__"},
}
HEAVY = {"torch", "transformers", "datasets", "matplotlib", "accelerate", "evaluate", "sklearn"}
ALLOWED_HEAVY = {
    "optim": {"torch"},
    "trainer": {"torch", "transformers", "accelerate"},
    "scales": {"torch", "transformers", "accelerate"},
    "tasks": HEAVY - {"matplotlib"},
    "study": HEAVY - {"matplotlib"},
    "report": {"matplotlib"},
}


def imports(path: Path) -> Iterator[str]:
    """The absolute names of what a file imports, at the top or inside functions."""
    parts = ("hf_proxadam", *path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*parts[: len(parts) - node.level], *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_one_way() -> None:
    wrong = []
    for part, allowed in ALLOWED.items():
        for path in sorted((PACKAGE / part).rglob("*.py")):
            for name in imports(path):
                top, _, rest = name.partition(".")
                if top == "hf_proxadam":
                    fine = any(rest == a or rest.startswith(a + ".") for a in allowed)
                else:
                    fine = top not in HEAVY or top in ALLOWED_HEAVY[part]
                if not fine:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_nothing_imports_scripts() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not any(name.split(".")[0] == "scripts" for name in imports(path)), path


def test_files_are_short() -> None:
    root = PACKAGE.parent
    long = [
        p
        for folder in ("hf_proxadam", "scripts", "tests")
        for p in (root / folder).rglob("*.py")
        if len(p.read_text().splitlines()) > 400
    ]
    assert not long
