"""Classification of images: any dataset of the Hub or local folder, any model of transformers or of the paper."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, EvalPrediction, PretrainedConfig, PreTrainedModel

from hf_proxadam.tasks.augmentation import Augmentation
from hf_proxadam.tasks.data import (
    check_at_least,
    check_folder,
    check_fraction,
    check_model_path,
    data_state,
    first_line,
    hold_out,
    limit,
)
from hf_proxadam.tasks.image_data import ImageData, load_images
from hf_proxadam.tasks.image_models import ModelChoice, interpolates_positions, side_of
from hf_proxadam.tasks.image_reading import ImageSplit, Row, decode, drop_unreadable, fit

logger = logging.getLogger(__name__)

_LOOKED_AT = 500  # images that sizes and brightness are taken from
_BRIGHTEST = 255.0
_GREY = ("1", "L", "LA")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTask:
    """Image classification.

    Args:
        dataset_name: a dataset on the Hub, or
        dataset_path: a local folder: Parquet files in the Hub's layout (train*.parquet, test*.parquet), or images in
            FOLDER/train/<class>/, FOLDER/test/<class>/.
        dataset_config_name: configuration of the dataset, where it has several.
        image_column: default: the only column of images.
        label_column: default: `label` or `labels`.
        model_name_or_path: a pretrained model (Hub or folder), or a net of the paper with random weights: `resnet20`,
            `resnet44`, `resnet56`, `resnet110`, `resnet218`, `densenet_bc_100`; or
        model_type: an architecture with random weights, such as `vit`.
        config_overrides: `key=value,key=value` for the model's configuration.
        normalization: `none` takes the normalisation layers out of a net of the paper or of a `vit`.
        image_size: side in pixels that images are brought to (the largest square around the middle). Default: what a
            pretrained model was trained on; else the images' own.
        random_crop: `padded` (for small images), `resized` (for photographs) or `none`.
        random_crop_padding: black pixels on each side for `padded`.
        random_flip: mirror every second training image.
        mixup_alpha: mix training images in pairs, by Beta(alpha, alpha); 0 for never.
        skip_unreadable_images: leave out images that can't be decoded, and say which; all images are decoded once more
            for that. Otherwise the first one ends the run.
        validation_fraction: the share of the training data that is held out for choosing hyper-parameters, stratified
            by class; then the dataset's own test (or else validation) split is `test`, which a study reports on. With 0
            `validation` is the dataset's own validation split, or, where it has none, its test split.
        max_train_samples: use only the first so many training images of a fixed random order.
        max_eval_samples: use only the first so many images of each split that is evaluated.

    Raises:
        ValueError: an option is out of its range; when data or model are first asked for, that they are not there or
            not as they should be.
    """

    dataset_name: str | None = None
    dataset_path: str | None = None
    dataset_config_name: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    model_name_or_path: str | None = None
    model_type: str | None = None
    config_overrides: str | None = None
    normalization: str = "default"
    image_size: int | None = None
    random_crop: str = "none"
    random_crop_padding: int = 4
    random_flip: bool = False
    mixup_alpha: float = 0.0
    skip_unreadable_images: bool = False
    validation_fraction: float = 0.1
    max_train_samples: int | None = None
    max_eval_samples: int | None = None

    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)

    def __post_init__(self) -> None:
        if (self.dataset_name is None) == (self.dataset_path is None):
            raise ValueError("Give one of dataset_name (on the Hub) and dataset_path (a local folder).")
        check_folder("dataset_path", self.dataset_path)
        check_fraction(self.validation_fraction)
        check_at_least(self, ("image_size", "max_train_samples", "max_eval_samples"), 1)
        _ = self._choice, self._augmentation  # they check their options themselves
        if not self._choice.is_paper_net:
            check_model_path(self.model_name_or_path)

    @property
    def has_test(self) -> bool:
        """Whether data is left to report on that nothing was chosen by; the data is read for that."""
        return "test" in self._splits

    @property
    def train(self) -> ImageSplit:
        """Training images, augmented."""
        return self._split("train", self._augmentation)

    @property
    def validation(self) -> ImageSplit:
        """Images for choosing hyper-parameters."""
        return self._split("validation")

    @property
    def test(self) -> ImageSplit:
        """Images for reporting.

        Raises:
            ValueError: nothing is held out for choosing, so this split is taken for that.
        """
        if not self.has_test:
            raise ValueError(
                "images: there is no split to report on: set validation_fraction to 0.1, say, where the dataset has a "
                "test split."
            )
        return self._split("test")

    def describe(self) -> dict[str, Any]:
        """What the task is, for the record of a run: kind, data (and which state of it), scores and sizes of splits."""
        folder = None if self.dataset_path is None else Path(self.dataset_path).expanduser().resolve()
        # Folders of single images are not read once more for a digest.
        files = None if folder is None else sorted(folder.rglob("*.parquet"))
        choice = self._choice
        plain = "" if self.normalization == "default" else " without normalisation"
        return {
            "name": "images",
            "pipeline_tag": "image-classification",
            "metrics": list(self.metrics),
            "dataset": {
                "name": self.dataset_name if folder is None else folder.name,
                "id": self.dataset_name,
                "config": self.dataset_config_name,
                "local": folder is not None,
                **(
                    data_state(self._data.splits["train"], files) if files != [] else {"revision": None, "sha256": None}
                ),
            },
            "splits": {name: {"of": of, "examples": len(self._splits[name])} for name, of in self._origins.items()},
            "base_model": f"{self.model_name_or_path or self.model_type}{plain}",
            "from_scratch": not choice.pretrained,
        }

    @functools.cached_property
    def image_processor(self) -> Any:
        """What brings other images to the saved model as training did; it is saved beside it."""
        make = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
        mean, std = self._brightness
        return make(size={"height": self._side, "width": self._side}, image_mean=mean, image_std=std)

    def make_model(self, *, trained: bool = False) -> PreTrainedModel:
        """Make or load the model, with the classes' names in its configuration.

        Args:
            trained: refuse a model that has random weights.
        """
        model = self._choice.make_model(self._config, trained=trained)
        was_training = model.training
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, self._channels, self._side, self._side), **self._more_inputs)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"This {self._config.model_type} does not take images of {self._side} pixels: {first_line(error)}"
            ) from error
        model.train(was_training)
        return model

    def collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Make a batch: `pixel_values` float32 (batch, channels, side, side), brightness about 0 +- 1, and `labels`.

        Labels are int64 (batch,), or with mixup, for training images, shares: float32 (batch, classes).
        """
        pixels = np.empty((len(rows), *rows[0].pixels.shape), dtype=np.uint8)
        draws = [row.draws for row in rows if row.draws is not None]
        for out, row in zip(pixels, rows, strict=True):
            if row.draws is None:
                out[...] = row.pixels
            else:
                self._augmentation.crop_and_flip(row.pixels, row.draws, out)
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) * _BRIGHTEST for numbers in self._brightness)
        images = torch.from_numpy(pixels).float().sub_(mean).div_(std)
        labels = torch.tensor([row.label for row in rows])
        if draws and self.mixup_alpha:
            images, labels = self._augmentation.mix(images, labels, len(self._data.classes), np.stack(draws))
        return {"pixel_values": images, "labels": labels, **self._more_inputs}

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Share of the images whose largest logit is that of their class."""
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return {"accuracy": float(np.mean(logits.argmax(axis=-1) == prediction.label_ids))}

    @functools.cached_property
    def _choice(self) -> ModelChoice:
        return ModelChoice(**{field.name: getattr(self, field.name) for field in dataclasses.fields(ModelChoice)})

    @functools.cached_property
    def _augmentation(self) -> Augmentation:
        return Augmentation(
            random_crop=self.random_crop,
            padding=self.random_crop_padding,
            random_flip=self.random_flip,
            mixup_alpha=self.mixup_alpha,
        )

    @functools.cached_property
    def _data(self) -> ImageData:
        return load_images(
            self.dataset_name, self.dataset_config_name, self.dataset_path, self.image_column, self.label_column
        )

    @functools.cached_property
    def _origins(self) -> dict[str, str]:
        """The dataset's own split that each of ours is taken from."""
        own = [name for name in ("validation", "test") if name in self._data.splits]
        if self.validation_fraction > 0:
            return {"train": "train", "validation": "train", **({"test": own[-1]} if own else {})}
        if not own:
            raise ValueError(
                f"{self._data.place} has a train split only: hold a part of it out with validation_fraction."
            )
        return {"train": "train", "validation": own[0], **({"test": own[1]} if len(own) > 1 else {})}

    @functools.cached_property
    def _splits(self) -> dict[str, datasets.Dataset]:
        found = {name: self._data.splits[name] for name in dict.fromkeys(self._origins.values())}
        if self.skip_unreadable_images:
            for name, rows in found.items():
                found[name], said = drop_unreadable(rows, self._place(name))
                if said:
                    logger.warning(said)
        parts = {name: found[origin] for name, origin in self._origins.items()}
        if self.validation_fraction > 0:
            parts["train"], parts["validation"] = hold_out(found["train"], self.validation_fraction, "label")
        return limit(parts, self.max_train_samples, self.max_eval_samples)

    def _split(self, name: str, augmentation: Augmentation | None = None) -> ImageSplit:
        place = self._place(self._origins[name])
        return ImageSplit(self._splits[name], self._side, self._channels, place, augmentation)

    def _place(self, split: str) -> str:
        return f"{self._data.place}, split {split}"

    @functools.cached_property
    def _sample(self) -> list[Image.Image]:
        """Training images, evenly spread, that sizes and brightness are taken from."""
        rows = self._splits["train"]
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _LOOKED_AT).astype(int)).tolist()]
        place = self._place("train")
        return [decode(image, place, row) for image, row in zip(chosen["image"], chosen["row"], strict=True)]

    @functools.cached_property
    def _config(self) -> PretrainedConfig:
        defaults = {}
        if not self._choice.pretrained:
            given = self._choice.overrides
            defaults["num_channels"] = given.get("num_channels") or (3 if self._coloured() else 1)
            defaults["image_size"] = given.get("image_size") or self.image_size or self._own_side()
        return self._choice.make_config(self._data.classes, defaults)

    def _coloured(self) -> bool:
        return any(image.mode not in _GREY for image in self._sample)

    def _own_side(self) -> int:
        sizes = {image.size for image in self._sample}
        side = min(min(size) for size in sizes)
        if sizes != {(side, side)}:
            shown = ", ".join(f"{width} x {height}" for width, height in sorted(sizes)[:3])
            raise ValueError(
                f"{self._data.place} has images of {shown}{', ...' if len(sizes) > 3 else ''} pixels; "
                "give image_size, the side of the squares that they are brought to."
            )
        return side

    @functools.cached_property
    def _side(self) -> int:
        made_for = side_of(self._config)
        if not self._choice.pretrained and made_for is not None:
            if self.image_size not in (None, made_for):
                raise ValueError(
                    f"image_size is {self.image_size}, but config_overrides has {made_for}; give one of them."
                )
            return made_for
        return self.image_size or made_for or self._own_side()

    @functools.cached_property
    def _channels(self) -> int:
        channels: int = getattr(self._config, "num_channels", 3)
        if channels not in (1, 3):
            raise ValueError(f"The model takes images of {channels} channels; 1 (grey) or 3 (colour) can be made.")
        return channels

    @functools.cached_property
    def _more_inputs(self) -> dict[str, bool]:
        other = side_of(self._config) not in (None, self._side)
        return {"interpolate_pos_encoding": True} if other and interpolates_positions(self._config) else {}

    @functools.cached_property
    def _brightness(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel, as shares of 255: the pretrained model's, or the data's."""
        if self._choice.pretrained:
            try:
                found = AutoImageProcessor.from_pretrained(self.model_name_or_path).to_dict()
            except (ImportError, OSError, ValueError) as error:
                logger.warning("%s: brightness is taken from the data.", first_line(error))
            else:
                if not found.get("do_normalize", True):
                    return [0.0] * self._channels, [1.0] * self._channels
                mean, std = found.get("image_mean"), found.get("image_std")
                if mean is not None and std is not None and len(mean) == len(std) == self._channels:
                    return list(mean), list(std)
        pixels = np.stack([fit(image, self._side, self._channels) for image in self._sample]) / _BRIGHTEST
        # An image of one colour has no spread to divide by.
        std = np.maximum(pixels.std(axis=(0, 2, 3)), 1 / _BRIGHTEST)
        return pixels.mean(axis=(0, 2, 3)).tolist(), std.tolist()
