"""Whether a card says what the data beside it give: everything in it is computed once more and compared."""

import difflib
import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from hf_proxadam.report import build, data, style
from hf_proxadam.report.publication import CARD, find
from hf_proxadam.report.text import visible

_SHOWN = 5


def verify(folder: Path) -> tuple[list[str], list[str]]:
    """Compute card and figures from the data in `folder` and compare them with the ones that are there.

    Args:
        folder: a study folder or its report, a fine-tuned model's folder, or what was published of either.

    Returns:
        What does not agree, a sentence each; and what could not be compared.

    Raises:
        ValueError: the folder holds no report, or its data can't be read.
    """
    _, root = find(folder)
    if not (root / CARD).is_file():
        raise ValueError(f"{root} has no {CARD}: `hf-proxadam report {folder}` makes it.")
    try:
        expected, figures = build.compute(root)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The data in {root} are not those of a report ({error!r}).") from error
    wrong, open_questions = _text(_read(root / CARD), expected), []
    if (root / data.STUDY).is_file() and (root / "runs.csv").is_file():
        wrong += _table(root)
    for name, image in figures.items():
        path = root / "figures" / name
        if not path.is_file():
            wrong.append(f"figures/{name} is missing.")
        elif path.read_bytes() != image:
            drawn_by, differs = _figure(path, image)
            if drawn_by.startswith("matplotlib ") and drawn_by != style.DRAWN_BY:
                open_questions.append(f"figures/{name} was drawn by {visible(drawn_by)}; here is {style.DRAWN_BY}.")
            elif differs:
                wrong.append(f"figures/{name} is not the figure that the data give.")
    return wrong, open_questions


def _text(card: str, expected: str) -> list[str]:
    """Differences between two cards, with the numbers of the card's lines."""
    found, wanted = card.splitlines(), expected.splitlines()
    wrong = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, found, wanted, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        says = " / ".join(found[i:j]) or "nothing"
        give = " / ".join(wanted[k:m]) or "nothing"
        says, give = _around_difference(says, give)
        wrong.append(f"{CARD}, line {i + 1} says {says!r}; the data give {give!r}.")
    if len(wrong) > _SHOWN:
        wrong[_SHOWN:] = [f"{CARD} differs in {len(wrong) - _SHOWN} more places."]
    return wrong


def _around_difference(a: str, b: str, width: int = 60) -> tuple[str, str]:
    """Cut two long strings to what lies around the first place where they differ."""
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, same - width // 2)
    return tuple(  # type: ignore[return-value]
        ("…" if start else "") + text[start : start + width] + ("…" if len(text) > start + width else "")
        for text in (a, b)
    )


def _table(root: Path) -> list[str]:
    """Whether the table for people is the one that everything is computed from."""
    expected = pd.read_parquet(root / "runs.parquet").to_csv(index=False, lineterminator="\n")
    return [] if _read(root / "runs.csv") == expected else ["runs.csv is not the table of runs.parquet."]


def _figure(path: Path, image: bytes) -> tuple[str, bool]:
    """Which program drew a figure, and whether it shows something else than `image`."""
    try:
        with Image.open(path) as there, Image.open(io.BytesIO(image)) as drawn:
            drawn_by = str(there.info.get("Software", "an unknown program"))
            return drawn_by, there.size != drawn.size or not np.array_equal(np.asarray(there), np.asarray(drawn))
    except (OSError, UnidentifiedImageError, ValueError):
        return style.DRAWN_BY, True


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except ValueError as error:
        raise ValueError(f"{path} can't be read as UTF-8 ({error}).") from error
