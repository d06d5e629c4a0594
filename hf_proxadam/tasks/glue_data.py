"""The data of the GLUE benchmark, from the Hub or from a local folder: read, checked, and written as submissions."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet

from hf_proxadam import atomic
from hf_proxadam.tasks.data import first_line

HUB_DATASET = "nyu-mll/glue"
FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueDataset:
    """One task of the benchmark.

    Attributes:
        columns: the text columns.
        classes: names of the labels 0, 1, ...; none for a regression.
        metrics: the scores that the benchmark ranks by, the first one first.
        submissions: the splits whose labels are hidden, and the file that the benchmark takes for each.
        by_name: whether submissions have the labels' names, and not their numbers.
        validation: the splits with labels to validate on, the main one first; none where there is nothing to train on.
    """

    columns: tuple[str, ...]
    classes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    submissions: dict[str, str]
    by_name: bool = False
    validation: tuple[str, ...] = ("validation",)

    @property
    def labels(self) -> int:
        """How many outputs a model needs."""
        return len(self.classes) or 1


_PAIR = ("sentence1", "sentence2")
_NLI = ("entailment", "neutral", "contradiction")

GLUE: dict[str, GlueDataset] = {
    "ax": GlueDataset(
        columns=("premise", "hypothesis"), classes=_NLI, submissions={"test": "AX.tsv"}, by_name=True, validation=()
    ),
    "cola": GlueDataset(
        columns=("sentence",),
        classes=("unacceptable", "acceptable"),
        metrics=("matthews_correlation", "accuracy"),
        submissions={"test": "CoLA.tsv"},
    ),
    "mnli": GlueDataset(
        columns=("premise", "hypothesis"),
        classes=_NLI,
        submissions={"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
        by_name=True,
        validation=("validation_matched", "validation_mismatched"),
    ),
    "mrpc": GlueDataset(
        columns=_PAIR,
        classes=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        submissions={"test": "MRPC.tsv"},
    ),
    "qnli": GlueDataset(
        columns=("question", "sentence"),
        classes=("entailment", "not_entailment"),
        submissions={"test": "QNLI.tsv"},
        by_name=True,
    ),
    "qqp": GlueDataset(
        columns=("question1", "question2"),
        classes=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        submissions={"test": "QQP.tsv"},
    ),
    "rte": GlueDataset(
        columns=_PAIR, classes=("entailment", "not_entailment"), submissions={"test": "RTE.tsv"}, by_name=True
    ),
    "sst2": GlueDataset(columns=("sentence",), classes=("negative", "positive"), submissions={"test": "SST-2.tsv"}),
    "stsb": GlueDataset(columns=_PAIR, metrics=("pearson", "spearmanr"), submissions={"test": "STS-B.tsv"}),
    "wnli": GlueDataset(columns=_PAIR, classes=("not_entailment", "entailment"), submissions={"test": "WNLI.tsv"}),
}


def write_submission(path: Path, task: GlueDataset, indices: Sequence[int], logits: np.ndarray) -> None:
    """Write predictions as the benchmark takes them: tab-separated, `index` and `prediction`.

    Args:
        path: the file, such as `task.submissions["test"]` in a folder.
        task: whose predictions they are.
        indices: the examples' `idx`.
        logits: the model's outputs, shape (examples, labels); for a regression they are held in the scale 0 to 5.
    """
    if not task.classes:
        guesses = [f"{score:.3f}" for score in np.clip(logits[:, 0], 0, 5)]
    else:
        numbers = logits.argmax(-1)
        guesses = [task.classes[number] if task.by_name else str(number) for number in numbers]
    rows = [f"{index}\t{guess}" for index, guess in zip(indices, guesses, strict=True)]
    atomic.write_text(path, "\n".join(["index\tprediction", *rows]) + "\n")


def load_raw(task_name: str, dataset_path: str | None, splits: Sequence[str]) -> dict[str, datasets.Dataset]:
    """Read and check splits of a task; those with hidden labels get no look at their labels.

    Raises:
        ValueError: files or columns are missing, a split is empty, or a label is none of the task's.
    """
    if dataset_path is None:
        try:
            found = datasets.load_dataset(HUB_DATASET, task_name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{HUB_DATASET} can't be had from the Hub ({first_line(error)}); dataset_path takes a local folder."
            ) from error
        place = f"{HUB_DATASET}, {task_name}"
    else:
        folder = Path(dataset_path).expanduser() / task_name
        place = str(folder)
        kind, files = data_files(folder, splits)
        # Each split by itself: a column that one of them lacks is then named, and doesn't clash with the other's.
        found = {split: _read(kind, split, paths, folder) for split, paths in files.items()}
    for name in splits:
        if name not in found:
            raise ValueError(f"{place} has no {name} split; it has: {', '.join(found) or 'nothing'}.")
        hidden = name in GLUE[task_name].submissions
        _check_split(found[name], GLUE[task_name], f"{place}, split {name}", labelled=not hidden)
    return {name: found[name] for name in splits}


def data_files(folder: Path, splits: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """The format of the files in a task's folder, and the files of each of the splits.

    Raises:
        ValueError: the folder or files of a split are missing, or formats are mixed.
    """
    if not folder.is_dir():
        parent = folder.parent
        there = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
        raise ValueError(f"The data folder {folder} is not there; {parent} has: {', '.join(there) or 'no folders'}.")
    names = sorted(path for path in folder.iterdir() if path.suffix in FORMATS)
    files = {split: [str(path) for path in names if path.stem.split("-")[0] == split] for split in splits}
    missing = [split for split, paths in files.items() if not paths]
    if missing:
        raise ValueError(
            f"{folder} has no file for {' and '.join(missing)}; each split must be there as one of "
            f"{', '.join(FORMATS)}, such as train-00000-of-00001.parquet."
        )
    kinds = {FORMATS[Path(path).suffix] for paths in files.values() for path in paths}
    if len(kinds) > 1:
        raise ValueError(f"{folder} mixes the formats {', '.join(sorted(kinds))}; keep one of them.")
    return kinds.pop(), files


def _read(kind: str, split: str, paths: list[str], folder: Path) -> datasets.Dataset:
    try:
        if kind == "parquet" and not sum(pyarrow.parquet.read_metadata(path).num_rows for path in paths):
            raise ValueError("it has no rows.")  # which `datasets` would say as "BatchSize must be greater than 0"
        return datasets.load_dataset(kind, data_files={split: paths}, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"The {split} data in {folder} can't be read: {reason}") from error


def _check_split(split: datasets.Dataset, task: GlueDataset, place: str, *, labelled: bool) -> None:
    needed = (*task.columns, "label") if labelled else task.columns
    missing = [column for column in needed if column not in split.column_names]
    if missing:
        raise ValueError(f"{place} has no column {', '.join(missing)}; it has: {', '.join(split.column_names)}.")
    if not len(split):
        raise ValueError(f"{place} is empty.")
    if labelled and task.classes:
        strange = set(split.unique("label")) - set(range(task.labels))
        if strange:
            shown = ", ".join(sorted(map(repr, strange))[:5])
            raise ValueError(f"{place} has the label {shown}; it must be a whole number from 0 to {task.labels - 1}.")
