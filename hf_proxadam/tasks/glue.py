"""Tasks of the GLUE benchmark with a pretrained text encoder."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
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

from hf_proxadam.tasks.data import (
    check_at_least,
    check_folder,
    check_fraction,
    check_model_path,
    data_state,
    head,
    hold_out,
    limit,
    loaded,
)
from hf_proxadam.tasks.glue_data import GLUE, HUB_DATASET, GlueDataset, data_files, load_raw, write_submission
from hf_proxadam.tasks.glue_metric import GlueMetric


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueTask:
    """Fine-tuning on one task of GLUE.

    Args:
        task_name: a key of `GLUE`; `ax` has nothing to train on, and takes a model that was trained on `mnli`.
        model_name_or_path: a pretrained encoder, a name on the Hub or a local folder.
        model_revision: branch, tag or commit of a model on the Hub.
        dataset_path: a local folder in the Hub's layout, FOLDER/<task_name>/train*.parquet, validation*.parquet (or
            csv, json, jsonl); default: the Hub's `nyu-mll/glue`.
        max_seq_length: longer inputs are cut to so many tokens.
        pad_to_max_length: pad all batches to `max_seq_length` (for compiled models), and not to their longest row.
        validation_fraction: the share of the training data that is held out for choosing hyper-parameters, stratified
            by label; then the benchmark's validation split is `test`, which a study reports on. With 0 nothing is held
            out, the benchmark's validation split is `validation`, and there is no `test`.
        max_train_samples: use only the first so many training examples of a fixed random order.
        max_eval_samples: use only the first so many examples of each split that is evaluated.
        max_predict_samples: use only the first so many examples of each split that is predicted.

    Raises:
        ValueError: an option is out of its range; when data or model are first asked for, that they are not there or
            not as they should be.
    """

    task_name: str
    model_name_or_path: str
    model_revision: str = "main"
    dataset_path: str | None = None
    max_seq_length: int = 128
    pad_to_max_length: bool = False
    validation_fraction: float = 0.1
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    max_predict_samples: int | None = None

    def __post_init__(self) -> None:
        if self.task_name not in GLUE:
            raise ValueError(f"There is no GLUE task {self.task_name!r}; known are: {', '.join(GLUE)}.")
        check_fraction(self.validation_fraction)
        check_at_least(self, ("max_seq_length", "max_train_samples", "max_eval_samples", "max_predict_samples"), 1)
        check_folder("dataset_path", self.dataset_path)
        check_model_path(self.model_name_or_path)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The benchmark's scores for the task."""
        return self._dataset.metrics

    @property
    def has_train(self) -> bool:
        """Whether there is data to train and to validate on."""
        return bool(self._dataset.validation)

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

    @property
    def mismatched(self) -> datasets.Dataset | None:
        """Tokenised `validation_mismatched` of mnli, from other genres than its training data; else None."""
        return self._splits.get("mismatched")

    @functools.cached_property
    def unlabelled(self) -> dict[str, datasets.Dataset]:
        """Name of the benchmark's submission file to the tokenised split that it is for."""
        files = self._dataset.submissions
        raw = load_raw(self.task_name, self.dataset_path, tuple(files))
        return {
            file: self._tokenize(head(raw[split], self.max_predict_samples), labelled=False)
            for split, file in files.items()
        }

    def describe(self) -> dict[str, Any]:
        """What the task is, for the record of a run: kind, data (and which state of it), scores and sizes of splits."""
        first, *others = self._dataset.validation
        splits = {"validation": first, "train": "train"}
        if self.has_test:
            splits = {"validation": "part of train", "test": first, "train": "rest of train"}
        if others:
            splits["mismatched"] = others[0]
        files = None
        if self.dataset_path is not None:
            _, found = data_files(Path(self.dataset_path).expanduser() / self.task_name, tuple(self._raw))
            files = [Path(path) for paths in found.values() for path in paths]
        return {
            "name": self.task_name,
            "pipeline_tag": "text-classification",
            "metrics": list(self.metrics),
            "dataset": {
                "name": f"GLUE {self.task_name}",
                "id": HUB_DATASET,
                "config": self.task_name,
                "local": self.dataset_path is not None,
                **data_state(self._raw["train"], files),
            },
            "splits": {name: {"of": of, "examples": len(self._splits[name])} for name, of in splits.items()},
            "base_model": self.model_name_or_path,
            "from_scratch": False,
        }

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return loaded(AutoTokenizer, self.model_name_or_path, "tokenizer", revision=self.model_revision)

    def make_model(self, *, trained: bool = False) -> PreTrainedModel:
        """Load the encoder, with a fresh classification (or regression) head where it has none that fits.

        Args:
            trained: refuse a model that would need a fresh head.
        """
        names = self._dataset.classes
        labels: dict[str, Any] = {"num_labels": self._dataset.labels}
        if names:
            labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        config = loaded(AutoConfig, self.model_name_or_path, "model", revision=self.model_revision, **labels)
        model, info = loaded(
            AutoModelForSequenceClassification,
            self.model_name_or_path,
            "model",
            config=config,
            revision=self.model_revision,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        if trained and (info["missing_keys"] or info["mismatched_keys"]):
            raise ValueError(
                f"The model {self.model_name_or_path!r} has no head for {self._dataset.labels} labels: train it first, "
                "or give the output folder of a training."
            )
        return model

    def collate(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Pad a batch to its longest row: `input_ids`, `attention_mask` int64 (batch, length), `labels` (batch,)."""
        batch: dict[str, torch.Tensor] = self._collator(rows)
        return batch

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """The benchmark's scores of the model's logits."""
        logits = _logits(prediction.predictions)
        guesses = np.argmax(logits, axis=-1) if self._dataset.classes else np.squeeze(logits, -1)
        scores = self._metric.compute(predictions=guesses, references=prediction.label_ids)
        return {name: float(scores[name]) for name in self.metrics}

    def write_submission(self, path: Path, rows: datasets.Dataset, predictions: Any) -> None:
        """Write the model's predictions for one of `unlabelled` as the benchmark takes them."""
        write_submission(path, self._dataset, rows["idx"], _logits(predictions))

    @property
    def _dataset(self) -> GlueDataset:
        return GLUE[self.task_name]

    @functools.cached_property
    def _metric(self) -> GlueMetric:
        return GlueMetric("+".join(self.metrics))

    @functools.cached_property
    def _collator(self) -> DataCollatorWithPadding:
        if self.pad_to_max_length:
            return DataCollatorWithPadding(self.tokenizer, padding="max_length", max_length=self.max_seq_length)
        return DataCollatorWithPadding(self.tokenizer)

    @functools.cached_property
    def _raw(self) -> dict[str, datasets.Dataset]:
        if not self.has_train:
            raise ValueError(
                f"The task {self.task_name!r} has no labelled data: only --do_predict goes, with a model that was "
                "trained on mnli."
            )
        return load_raw(self.task_name, self.dataset_path, ("train", *self._dataset.validation))

    @functools.cached_property
    def _splits(self) -> dict[str, datasets.Dataset]:
        raw = self._raw
        first, *others = self._dataset.validation
        parts = {"train": raw["train"], "validation": raw[first]}
        if self.has_test:
            train, held_out = hold_out(raw["train"], self.validation_fraction, "label")
            parts = {"train": train, "validation": held_out, "test": raw[first]}
        if others:
            parts["mismatched"] = raw[others[0]]
        limited = limit(parts, self.max_train_samples, self.max_eval_samples)
        return {name: self._tokenize(part) for name, part in limited.items()}

    def _tokenize(self, part: datasets.Dataset, *, labelled: bool = True) -> datasets.Dataset:
        columns, most, tokenizer = self._dataset.columns, self.max_seq_length, self.tokenizer
        if most > tokenizer.model_max_length:
            raise ValueError(f"max_seq_length is {most}; the model takes at most {tokenizer.model_max_length} tokens.")

        def tokenize(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            texts = [rows[column] for column in columns]
            # Labels that are hidden, and the numbers by which submissions name their rows.
            more = {"labels": rows["label"]} if labelled else {"idx": rows.get("idx", numbers)}
            return {**tokenizer(*texts, truncation=True, max_length=most), **more}

        return part.map(tokenize, batched=True, with_indices=True, remove_columns=part.column_names, desc="Tokenising")


def _logits(predictions: Any) -> np.ndarray:
    return predictions[0] if isinstance(predictions, tuple) else predictions
