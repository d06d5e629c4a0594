"""Tasks of the GLUE benchmark, from the Hub or from a local folder, with a pretrained text encoder."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_proxadam.tasks.glue_metric import GlueMetric

HUB_DATASET = "nyu-mll/glue"
FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueDataset:
    """One task of the benchmark: its text columns, its number of classes (1: a regression) and its scores."""

    columns: tuple[str, ...]
    labels: int
    metrics: tuple[str, ...]


GLUE: dict[str, GlueDataset] = {
    "cola": GlueDataset(columns=("sentence",), labels=2, metrics=("matthews_correlation", "accuracy")),
    "mrpc": GlueDataset(columns=("sentence1", "sentence2"), labels=2, metrics=("accuracy", "f1")),
    "qnli": GlueDataset(columns=("question", "sentence"), labels=2, metrics=("accuracy",)),
    "qqp": GlueDataset(columns=("question1", "question2"), labels=2, metrics=("accuracy", "f1")),
    "rte": GlueDataset(columns=("sentence1", "sentence2"), labels=2, metrics=("accuracy",)),
    "sst2": GlueDataset(columns=("sentence",), labels=2, metrics=("accuracy",)),
    "stsb": GlueDataset(columns=("sentence1", "sentence2"), labels=1, metrics=("pearson", "spearmanr")),
    "wnli": GlueDataset(columns=("sentence1", "sentence2"), labels=2, metrics=("accuracy",)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueTask:
    """Fine-tuning on one task of GLUE.

    Args:
        task_name: a key of `GLUE`.
        model_name_or_path: a pretrained encoder, a name on the Hub or a local folder.
        dataset_path: a local folder in the Hub's layout, FOLDER/<task_name>/train*.parquet, validation*.parquet (or
            csv, json, jsonl); default: the Hub's `nyu-mll/glue`.
        max_seq_length: longer inputs are cut to so many tokens.
        validation_fraction: the share of the training data that is held out for choosing hyper-parameters, stratified
            by label; then the benchmark's validation split is `test`, which a study reports on. With 0 nothing is held
            out, the benchmark's validation split is `validation`, and there is no `test`.
        max_train_samples: use only the first so many training examples of a fixed random order.
        max_eval_samples: use only the first so many examples of each split that is evaluated.

    Raises:
        ValueError: an option is out of its range; when data or model are first asked for, that they are not there or
            not as they should be.
    """

    task_name: str
    model_name_or_path: str
    dataset_path: str | None = None
    max_seq_length: int = 128
    validation_fraction: float = 0.1
    max_train_samples: int | None = None
    max_eval_samples: int | None = None

    def __post_init__(self) -> None:
        if self.task_name not in GLUE:
            raise ValueError(f"There is no GLUE task {self.task_name!r}; known are: {', '.join(GLUE)}.")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is {self.validation_fraction}; it must be in [0, 1).")
        for name in ("max_seq_length", "max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        for name in ("dataset_path", "model_name_or_path"):
            value = getattr(self, name)
            looks_local = name == "dataset_path" or (value or "").startswith(("/", "./", "../", "~"))
            if value is not None and looks_local and not Path(value).expanduser().is_dir():
                raise ValueError(f"{name} is {value!r}, but there is no such folder.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The benchmark's scores for the task."""
        return GLUE[self.task_name].metrics

    @property
    def has_test(self) -> bool:
        """Whether data is left to report on that nothing was chosen by."""
        return self.validation_fraction > 0

    @property
    def train(self) -> datasets.Dataset:
        """Tokenised training examples."""
        return self._splits["train"]

    @property
    def validation(self) -> datasets.Dataset:
        """Tokenised examples for choosing hyper-parameters."""
        return self._splits["validation"]

    @property
    def test(self) -> datasets.Dataset:
        """Tokenised examples for reporting: the benchmark's validation split, for its test labels are hidden.

        Raises:
            ValueError: nothing is held out for choosing, so this split is taken for that.
        """
        if not self.has_test:
            raise ValueError("glue: with validation_fraction 0 there is no split to report on; set it to 0.1, say.")
        return self._splits["test"]

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return _loaded(AutoTokenizer, self.model_name_or_path, "tokenizer")

    def make_model(self) -> PreTrainedModel:
        """Load the encoder and put a fresh classification (or regression) head on it."""
        labels = GLUE[self.task_name].labels
        config = _loaded(AutoConfig, self.model_name_or_path, "model", num_labels=labels)
        return _loaded(AutoModelForSequenceClassification, self.model_name_or_path, "model", config=config)

    def collate(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Pad a batch to its longest row: `input_ids`, `attention_mask` int64 (batch, length), `labels` (batch,)."""
        batch: dict[str, torch.Tensor] = self._collator(rows)
        return batch

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """The benchmark's scores of the model's logits."""
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        guesses = np.squeeze(logits, -1) if GLUE[self.task_name].labels == 1 else np.argmax(logits, axis=-1)
        scores = self._metric.compute(predictions=guesses, references=prediction.label_ids)
        return {name: float(scores[name]) for name in self.metrics}

    @functools.cached_property
    def _metric(self) -> GlueMetric:
        return GlueMetric("+".join(self.metrics))

    @functools.cached_property
    def _collator(self) -> DataCollatorWithPadding:
        return DataCollatorWithPadding(self.tokenizer)

    @functools.cached_property
    def _splits(self) -> dict[str, datasets.Dataset]:
        raw = load_raw(self.task_name, self.dataset_path)
        parts = {"train": raw["train"], "validation": raw["validation"]}
        if self.has_test:
            train, held_out = _hold_out(raw["train"], self.validation_fraction)
            parts = {"train": train, "validation": held_out, "test": raw["validation"]}
        if self.max_train_samples is not None:
            train = parts["train"].shuffle(seed=SPLIT_SEED)
            parts["train"] = train.select(range(min(self.max_train_samples, len(train))))
        if self.max_eval_samples is not None:
            for name in parts.keys() - {"train"}:
                parts[name] = parts[name].select(range(min(self.max_eval_samples, len(parts[name]))))
        return {name: self._tokenize(part) for name, part in parts.items()}

    def _tokenize(self, part: datasets.Dataset) -> datasets.Dataset:
        columns, most, tokenizer = GLUE[self.task_name].columns, self.max_seq_length, self.tokenizer
        if most > tokenizer.model_max_length:
            raise ValueError(f"max_seq_length is {most}; the model takes at most {tokenizer.model_max_length} tokens.")

        def tokenize(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
            texts = [rows[column] for column in columns]
            return {**tokenizer(*texts, truncation=True, max_length=most), "labels": rows["label"]}

        return part.map(tokenize, batched=True, remove_columns=part.column_names, desc="Tokenising")


def load_raw(task_name: str, dataset_path: str | None) -> dict[str, datasets.Dataset]:
    """Read and check the benchmark's training and validation data.

    Raises:
        ValueError: files or columns are missing, a split is empty, or a label is none of the task's.
    """
    if dataset_path is None:
        try:
            found = datasets.load_dataset(HUB_DATASET, task_name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{HUB_DATASET} can't be had from the Hub ({_first_line(error)}); dataset_path takes a local folder."
            ) from error
        place = f"{HUB_DATASET}, {task_name}"
    else:
        folder = Path(dataset_path).expanduser() / task_name
        place = str(folder)
        kind, files = _data_files(folder)
        # Each split by itself: a column that one of them lacks is then named, and doesn't clash with the other's.
        found = {split: _read(kind, split, paths, folder) for split, paths in files.items()}
    splits = {}
    for name in ("train", "validation"):
        if name not in found:
            raise ValueError(f"{place} has no {name} split; it has: {', '.join(found) or 'nothing'}.")
        splits[name] = found[name]
        _check_split(splits[name], GLUE[task_name], f"{place}, split {name}")
    return splits


def _data_files(folder: Path) -> tuple[str, dict[str, list[str]]]:
    if not folder.is_dir():
        parent = folder.parent
        there = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
        raise ValueError(f"The data folder {folder} is not there; {parent} has: {', '.join(there) or 'no folders'}.")
    names = sorted(path for path in folder.iterdir() if path.suffix in FORMATS)
    files = {
        split: [str(path) for path in names if path.stem.split("-")[0] == split] for split in ("train", "validation")
    }
    missing = [split for split, paths in files.items() if not paths]
    if missing:
        raise ValueError(
            f"{folder} has no file for {' and '.join(missing)}; it must hold train and validation as one of "
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
        reason = _first_line(error.__cause__ or error)
        raise ValueError(f"The {split} data in {folder} can't be read: {reason}") from error


def _check_split(split: datasets.Dataset, task: GlueDataset, place: str) -> None:
    missing = [column for column in (*task.columns, "label") if column not in split.column_names]
    if missing:
        raise ValueError(f"{place} has no column {', '.join(missing)}; it has: {', '.join(split.column_names)}.")
    if not len(split):
        raise ValueError(f"{place} is empty.")
    if task.labels > 1:
        strange = set(split.unique("label")) - set(range(task.labels))
        if strange:
            shown = ", ".join(sorted(map(repr, strange))[:5])
            raise ValueError(f"{place} has the label {shown}; it must be a whole number from 0 to {task.labels - 1}.")


def _hold_out(train: datasets.Dataset, fraction: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    # By hand, since train_test_split stratifies by columns of type ClassLabel only, which CSV and JSON don't have.
    generator = np.random.default_rng(SPLIT_SEED)
    labels = np.asarray(train["label"])
    held_out: list[int] = []
    classes = np.unique(labels) if np.issubdtype(labels.dtype, np.integer) else [None]
    for label in classes:
        members = np.arange(len(labels)) if label is None else np.flatnonzero(labels == label)
        held_out += generator.permutation(members)[: round(fraction * len(members))].tolist()
    if not held_out or len(held_out) == len(train):
        raise ValueError(f"validation_fraction {fraction} of {len(train)} training examples leaves an empty split.")
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    return train.select(rest), train.select(sorted(held_out))


def _loaded(auto: Any, name: str, what: str, **kwargs: Any) -> Any:
    try:
        return auto.from_pretrained(name, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(f"The {what} {name!r} can't be loaded: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
