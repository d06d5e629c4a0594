"""scikit-learn's digits (1,797 real 8x8 grey images, 10 classes) and a small ViT from a config: no download."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import EvalPrediction, PreTrainedModel, ViTConfig, ViTForImageClassification

IMAGE_SIZE = 8
CLASSES = 10
BRIGHTEST = 16.0
# The split is part of the task, not of a run: every seed sees the same three parts.
SPLIT_SEED = 0
HELD_OUT = 0.2

Row = tuple[torch.Tensor, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsTask:
    """Classification of handwritten digits.

    The 1,797 images are split once, stratified by class: 60 % train, 20 % validation, 20 % test.

    Args:
        hidden_size: width of the ViT; a multiple of `num_attention_heads`.
        num_hidden_layers: its depth.
        num_attention_heads: attention heads per layer.
        intermediate_size: width of the feed-forward layers.
        patch_size: side of a patch in pixels; divides 8.
        hidden_dropout_prob: dropout in [0, 1).
        initializer_range: standard deviation of the initial weights; ViT's usual 0.02 is made for a width of 768.
        max_train_samples: use only so many training images (the first ones of a fixed random order), for quick looks.

    Raises:
        ValueError: an option is out of its range.
    """

    hidden_size: int = 48
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 96
    patch_size: int = 2
    hidden_dropout_prob: float = 0.0
    initializer_range: float = 0.1
    max_train_samples: int | None = None

    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    has_test: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"digits: {name} is {getattr(self, name)}; it must be at least 1.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"digits: hidden_size is {self.hidden_size}; it must be a multiple of num_attention_heads, "
                f"{self.num_attention_heads}."
            )
        if self.patch_size < 1 or IMAGE_SIZE % self.patch_size:
            raise ValueError(f"digits: patch_size is {self.patch_size}; it must divide {IMAGE_SIZE}: 1, 2, 4 or 8.")
        if not 0 <= self.hidden_dropout_prob < 1:
            raise ValueError(f"digits: hidden_dropout_prob is {self.hidden_dropout_prob}; it must be in [0, 1).")
        if self.initializer_range <= 0:
            raise ValueError(f"digits: initializer_range is {self.initializer_range}; it must be positive.")
        if self.max_train_samples is not None and self.max_train_samples < 1:
            raise ValueError(f"digits: max_train_samples is {self.max_train_samples}; it must be at least 1.")

    @functools.cached_property
    def train(self) -> list[Row]:
        """The first 60 % of the images, or as many of them as were asked for."""
        return _splits()["train"][: self.max_train_samples]

    @functools.cached_property
    def validation(self) -> list[Row]:
        """20 % of the images, for choosing hyper-parameters."""
        return _splits()["validation"]

    @functools.cached_property
    def test(self) -> list[Row]:
        """20 % of the images, for reporting."""
        return _splits()["test"]

    def make_model(self) -> PreTrainedModel:
        """Make a ViT with random weights."""
        config = ViTConfig(
            image_size=IMAGE_SIZE,
            num_channels=1,
            num_labels=CLASSES,
            **{
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name != "max_train_samples"
            },
        )
        return ViTForImageClassification(config)

    def collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Stack rows: `pixel_values` float32 (batch, 1, 8, 8) in [-1, 1], `labels` int64 (batch,)."""
        images, labels = zip(*rows, strict=True)
        return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Share of the images whose largest logit is that of their label."""
        return {"accuracy": float(np.mean(prediction.predictions.argmax(axis=-1) == prediction.label_ids))}


@functools.cache
def _splits() -> dict[str, list[Row]]:
    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / BRIGHTEST * 2 - 1
    rows = list(zip(pixels, digits.target.tolist(), strict=True))
    index, labels = np.arange(len(rows)), digits.target
    rest, test = train_test_split(index, test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=labels)
    train, validation = train_test_split(rest, test_size=len(test), random_state=SPLIT_SEED, stratify=labels[rest])
    return {
        "train": [rows[i] for i in train],
        "validation": [rows[i] for i in validation],
        "test": [rows[i] for i in test],
    }
