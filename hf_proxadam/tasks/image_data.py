"""Reads an image-classification dataset: its splits, its image and label columns, its classes."""

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_proxadam.tasks.data import first_line

LABEL_COLUMNS = ("label", "labels")
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageData:
    """A dataset as it was found.

    Attributes:
        splits: `train`, and `validation` and `test` where they are there; columns `image` (encoded: bytes and path),
            `label` (int64, an index into `classes`) and `row` (int64, its number in the split as it was found).
        classes: the names of the classes.
        place: how errors call it.
    """

    splits: dict[str, datasets.Dataset]
    classes: list[str]
    place: str


def load_images(
    dataset_name: str | None,
    dataset_config_name: str | None,
    dataset_path: str | None,
    image_column: str | None,
    label_column: str | None,
) -> ImageData:
    """Read a dataset of the Hub or a local folder (Parquet in the Hub's layout, or one folder of images per class).

    Args:
        dataset_name: the dataset on the Hub, or
        dataset_path: the local folder.
        dataset_config_name: which of its configurations, where it has several.
        image_column: default: its only column of images.
        label_column: default: `label` or `labels`.

    Raises:
        ValueError: dataset, columns or a training split are not there, a split is empty, or a label is none of the
            classes.
    """
    if dataset_path is None:
        assert dataset_name is not None
        place, name = dataset_name, dataset_name
    else:
        place = name = str(Path(dataset_path).expanduser())
    try:
        found = datasets.load_dataset(name, dataset_config_name)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        hint = "; dataset_path takes a local folder" if dataset_path is None else ""
        raise ValueError(f"The dataset {place} can't be read: {first_line(error.__cause__ or error)}{hint}") from error
    if "train" not in found:
        raise ValueError(f"{place} has no train split; it has: {', '.join(found)}.")
    splits = {name: found[name] for name in SPLITS if name in found}
    for split, rows in splits.items():
        if not len(rows):
            raise ValueError(f"{place}, split {split}, is empty.")
    image = _image_column(splits["train"], image_column, place)
    label = _label_column(splits["train"], label_column, place)
    classes = _classes(splits["train"], label)
    if len(classes) < 2:
        raise ValueError(f"{place}, column {label}, has one class at most; there is nothing to tell apart.")
    for name, rows in splits.items():
        splits[name] = _normalised(rows, image, label, classes, f"{place}, split {name}")
    return ImageData(splits=splits, classes=[str(name) for name in classes], place=place)


def _image_column(train: datasets.Dataset, given: str | None, place: str) -> str:
    columns = train.column_names
    if given is not None:
        if given not in columns:
            raise ValueError(f"{place} has no column {given!r} (image_column); it has: {', '.join(columns)}.")
        return given
    images = [name for name, feature in train.features.items() if isinstance(feature, datasets.Image)]
    if len(images) != 1:
        count = "no column" if not images else "several columns"
        raise ValueError(f"{place} has {count} of images; name one in image_column, of: {', '.join(columns)}.")
    return images[0]


def _label_column(train: datasets.Dataset, given: str | None, place: str) -> str:
    columns = train.column_names
    wanted = LABEL_COLUMNS if given is None else (given,)
    for name in wanted:
        if name in columns:
            return name
    raise ValueError(
        f"{place} has no column {' or '.join(map(repr, wanted))}; name one in label_column, of: {', '.join(columns)}."
    )


def _classes(train: datasets.Dataset, column: str) -> list[Any]:
    """The values that a label may have, in the order of their indices."""
    feature = train.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    return sorted(value for value in train.unique(column) if value is not None)


def _normalised(rows: datasets.Dataset, image: str, label: str, classes: list[Any], place: str) -> datasets.Dataset:
    missing = [column for column in (image, label) if column not in rows.column_names]
    if missing:
        raise ValueError(f"{place} has no column {', '.join(missing)}; it has: {', '.join(rows.column_names)}.")
    named = isinstance(rows.features[label], datasets.ClassLabel)
    indices = {name: i for i, name in enumerate(range(len(classes)) if named else classes)}
    given = rows[label][:]
    strange = [(row, value) for row, value in enumerate(given) if value not in indices]
    if strange:
        row, value = strange[0]
        more = f" and so have {len(strange) - 1} more rows" if len(strange) > 1 else ""
        known = f"a whole number from 0 to {len(classes) - 1}" if named else f"one of {_some(classes)}"
        raise ValueError(f"{place}, row {row}, has the label {value!r}{more}; it must be {known}.")
    try:
        encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{place}, column {image}, holds no images but {rows.features[image]}.") from error
    labels = np.asarray([indices[value] for value in given], dtype=np.int64)
    if image != "image":
        encoded = encoded.rename_column(image, "image")
    # Splits get divided and shuffled; errors name the row in the dataset.
    return encoded.add_column("label", labels).add_column("row", np.arange(len(labels)))


def _some(values: list[Any]) -> str:
    shown = ", ".join(map(repr, values[:5]))
    return shown if len(values) <= 5 else f"{shown}, ... ({len(values)} classes)"
