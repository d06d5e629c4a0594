"""From a folder to what may be published: the card is there, is right, and tells nothing of this machine."""

from pathlib import Path

from hf_proxadam.report import build, checks, data, leaks
from hf_proxadam.report.publication import CARD, Publication, collect, find
from hf_proxadam.report.verify import verify


def prepare(folder: Path) -> tuple[Publication, list[str]]:
    """Make the card where there is none yet, and list what is published.

    Returns:
        What is published, and what of it could not be compared with the data.

    Raises:
        ValueError: the folder holds nothing to publish, its card does not say what its data give, or something in it
            must not leave the machine.
    """
    _, root = find(folder)
    if not (root / CARD).is_file():
        build.make(folder)
    elif root != folder and data.collect(folder).runs.to_csv(index=False, lineterminator="\n") != _table(root):
        raise ValueError(f"{root} is older than the runs in {folder}: run `hf-proxadam report {folder}` first.")
    contents = collect(folder)
    wrong, open_questions = verify(root)
    if wrong:
        raise ValueError(
            f"The card is not what its data give ({wrong[0].rstrip('.')}): `hf-proxadam report {folder}` makes it anew."
        )
    leaks.check(contents)
    return contents, open_questions


def describe(contents: Publication, open_questions: list[str]) -> tuple[str, bool]:
    """Tell what would be published.

    Args:
        contents: what `prepare` gives.
        open_questions: what could not be compared.

    Returns:
        The text for a terminal, and whether every check of the card's metadata has passed.
    """
    width = max(len(file.path) for file in contents.files)
    lines = [f"{contents.root} holds a {contents.kind}: a {contents.repo_type} repository on the Hub. Its files:"]
    lines += [f"  {file.path:{width}}  {_size(file.size):>9}" for file in contents.files]
    lines.append(f"{len(contents.files)} files, {_size(sum(file.size for file in contents.files))} in all.")
    if contents.left_out:
        lines += ["Left out:", *(f"  {name}: {reason}" for name, reason in contents.left_out)]
    passed = checks.check(contents)
    lines += ["The card's metadata:", *(f"  {'ok   ' if fine else 'WRONG'}  {told}" for fine, told in passed)]
    named = leaks.names(contents)
    if named:
        lines.append(f"Your user name stands in {', '.join(named)}: see that it is meant to.")
    lines += [f"Not compared: {question}" for question in open_questions]
    lines.append("The card is what the data give; no token, home folder or name of this machine was found.")
    return "\n".join(lines), all(fine for fine, _ in passed)


def _table(root: Path) -> str:
    path = root / "runs.csv"
    return path.read_bytes().decode(errors="replace") if path.is_file() else ""


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.{0 if unit == 'B' else 1}f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
