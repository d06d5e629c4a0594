"""What the tasks share: checks of their options, parts of a split, and errors of one sentence."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np

# Splits are part of the task, not of a run: every seed sees the same ones.
SPLIT_SEED = 0
_COMMIT = re.compile(r"^[0-9a-f]{40}$")


def check_at_least(options: Any, names: Iterable[str], least: int) -> None:
    """Refuse options (attributes of `options`) that are set and below `least`.

    Raises:
        ValueError: one of them is.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")


def check_fraction(fraction: float) -> None:
    """Refuse a `validation_fraction` outside [0, 1).

    Raises:
        ValueError: it is.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction is {fraction}; it must be in [0, 1).")


def check_folder(name: str, path: str | None) -> None:
    """Refuse the option `name` where its value is set and is no folder.

    Raises:
        ValueError: it is a file, or nothing is there.
    """
    if path is not None and not Path(path).expanduser().is_dir():
        found = "that is a file; give its folder" if Path(path).expanduser().is_file() else "there is no such folder"
        raise ValueError(f"{name} is {path!r}, but {found}.")


def check_model_path(name_or_path: str | None) -> None:
    """Refuse a `model_name_or_path` that is written like a local path where no folder is.

    Raises:
        ValueError: it is.
    """
    if (name_or_path or "").startswith(("/", "./", "../", "~")):
        check_folder("model_name_or_path", name_or_path)


def loaded(auto: Any, name: str, what: str, **kwargs: Any) -> Any:
    """Call `auto.from_pretrained(name, ...)`.

    Raises:
        ValueError: it can't be loaded, in one sentence.
    """
    try:
        return auto.from_pretrained(name, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(f"The {what} {name!r} can't be loaded: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, cut to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def hold_out(train: datasets.Dataset, fraction: float, column: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Divide training data, stratified by the whole numbers in `column`, the same way every time.

    Returns:
        What is left to learn from, and what is held out.

    Raises:
        ValueError: one of the two would be empty.
    """
    # By hand, since train_test_split stratifies by columns of type ClassLabel only, which CSV and JSON don't have.
    generator = np.random.default_rng(SPLIT_SEED)
    labels = np.asarray(train[column])
    held_out: list[int] = []
    classes = np.unique(labels) if np.issubdtype(labels.dtype, np.integer) else [None]
    for label in classes:
        members = np.arange(len(labels)) if label is None else np.flatnonzero(labels == label)
        held_out += generator.permutation(members)[: round(fraction * len(members))].tolist()
    if not held_out or len(held_out) == len(train):
        raise ValueError(f"validation_fraction {fraction} of {len(train)} training examples leaves an empty split.")
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    return train.select(rest), train.select(sorted(held_out))


def limit(
    parts: dict[str, datasets.Dataset], max_train_samples: int | None, max_eval_samples: int | None
) -> dict[str, datasets.Dataset]:
    """Keep the first so many training examples of a fixed random order, and the first so many of the other splits."""
    limited = dict(parts)
    if max_train_samples is not None:
        limited["train"] = head(parts["train"].shuffle(seed=SPLIT_SEED), max_train_samples)
    for name in parts.keys() - {"train"}:
        limited[name] = head(parts[name], max_eval_samples)
    return limited


def head(rows: datasets.Dataset, count: int | None) -> datasets.Dataset:
    """Keep the first `count` rows; all of them where it is None."""
    return rows if count is None else rows.select(range(min(count, len(rows))))


def data_state(train: datasets.Dataset, files: Iterable[Path] | None) -> dict[str, str | None]:
    """Which state of the data it is: `revision`, the commit of the Hub's dataset, or `sha256` of the local files.

    Args:
        train: the training data as `datasets` gives them.
        files: what they were read from; None for the Hub.
    """
    if files is None:
        # `datasets` names the folder of its cache after the commit, also where it had to do without the network.
        folders = [Path(file["filename"]).parent.name for file in train.cache_files]
        return {"revision": next(filter(_COMMIT.match, folders), None), "sha256": None}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {"revision": None, "sha256": digest.hexdigest()}
