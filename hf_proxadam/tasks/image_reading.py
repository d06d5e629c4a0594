"""Decodes images to one size, and says which one can't be read."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from hf_proxadam.tasks.augmentation import DRAWS, Augmentation, Draws
from hf_proxadam.tasks.data import first_line

_FEW_NAMES = 5
_HINT = " (skip_unreadable_images leaves such images out)"


class UnreadableImageError(ValueError):
    """An image can't be decoded; the message names its file, or its row."""

    def __init__(self, message: str) -> None:
        # In a worker process of a DataLoader, torch makes the error again from its whole traceback.
        super().__init__(message.strip().rpartition(f"{type(self).__name__}: ")[2])


class Row(NamedTuple):
    """An image: uint8 (channels, side, side), its class, and the random numbers of its augmentation, if any."""

    pixels: npt.NDArray[np.uint8]
    label: int
    draws: Draws | None


def decode(encoded: dict[str, Any], place: str, row: int) -> Image.Image:
    """Decode one image (`bytes`, or the file at `path`), turned upright.

    Raises:
        UnreadableImageError: it is missing or broken, or has more than 8 bits per channel.
    """
    name = (encoded or {}).get("path") or "an image without a file name"
    where = f"{place}, row {row} ({name})"
    try:
        data = encoded["bytes"]
        image = Image.open(encoded["path"] if data is None else io.BytesIO(data))
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # Pillow's plugins raise whatever they like on broken files
        if encoded is None:
            reason = "there is none"
        elif isinstance(error, UnidentifiedImageError):
            reason = "its format is unknown"
        else:
            reason = first_line(error)
        raise UnreadableImageError(f"{where} can't be read as an image: {reason}{_HINT}.") from error
    if image.mode[0] in "IF":
        raise UnreadableImageError(f"{where} has the mode {image.mode}; convert it to 8 bits per channel{_HINT}.")
    return image


def unreadable(rows: datasets.Dataset, place: str) -> dict[int, str]:
    """Find the images that can't be decoded, by decoding all: row number to what is wrong with it."""
    found = {}
    for row, encoded in enumerate(rows["image"]):
        try:
            decode(encoded, place, row)
        except UnreadableImageError as error:
            found[row] = str(error).replace(_HINT, "")
    return found


def drop_unreadable(rows: datasets.Dataset, place: str) -> tuple[datasets.Dataset, str | None]:
    """Leave out the images that can't be decoded.

    Returns:
        The other rows, and a sentence that counts and names those left out, or None.

    Raises:
        ValueError: none is left.
    """
    wrong = unreadable(rows, place)
    if not wrong:
        return rows, None
    if len(wrong) == len(rows):
        raise ValueError(f"{place} has no readable image: {next(iter(wrong.values()))}")
    names = "; ".join(list(wrong.values())[:_FEW_NAMES]) + ("; ..." if len(wrong) > _FEW_NAMES else "")
    kept = rows.select([row for row in range(len(rows)) if row not in wrong])
    return kept, f"{place}: {len(wrong)} of {len(rows)} images are skipped: {names}"


def fit(
    image: Image.Image, side: int, channels: int, box: tuple[float, float, float, float] | None = None
) -> npt.NDArray[np.uint8]:
    """Bring an image to its model's size: the part in `box`, or the largest square around its middle.

    Args:
        image: of any size and mode.
        side: pixels of the result, high and wide.
        channels: 1 for grey, 3 for colour.
        box: left, top, right, bottom.

    Returns:
        uint8 (channels, side, side).
    """
    image = image.convert("L" if channels == 1 else "RGB")
    if box is None and image.size != (side, side):
        width, height = image.size
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
    if box is not None:
        image = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(image)
    return pixels[np.newaxis] if channels == 1 else pixels.transpose(2, 0, 1)


class ImageSplit:
    """A split as the Trainer takes it: rows by index, decoded when they are asked for.

    Args:
        rows: columns `image` (encoded), `label` and `row`, as `hf_proxadam.tasks.image_data` makes them.
        side: pixels, high and wide, that images are brought to.
        channels: 1 for grey, 3 for colour.
        place: how errors call the split that the rows are from.
        augmentation: what is done to its images; None for a split that is evaluated.
    """

    def __init__(
        self, rows: datasets.Dataset, side: int, channels: int, place: str, augmentation: Augmentation | None = None
    ) -> None:
        self.rows = rows
        self.side = side
        self.channels = channels
        self.place = place
        self.augmentation = augmentation
        # In shared memory: worker processes that outlive an epoch see the next one's.
        self._epoch = torch.tensor([0, -1]).share_memory_()
        self._table: tuple[tuple[int, int], Draws] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Rows of a batch at once: what torch's DataLoader calls where it is there."""
        batch = self.rows[list(indices)]
        if self.augmentation is None:
            return [
                Row(fit(decode(encoded, self.place, row), self.side, self.channels), label, None)
                for row, encoded, label in zip(batch["row"], batch["image"], batch["label"], strict=True)
            ]
        found = []
        draws = self._draws(indices)
        for row, encoded, label, numbers in zip(batch["row"], batch["image"], batch["label"], draws, strict=True):
            image = decode(encoded, self.place, row)
            box = self.augmentation.box(image.size, numbers) if self.augmentation.random_crop == "resized" else None
            found.append(Row(fit(image, self.side, self.channels, box), label, numbers))
        return found

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """Make the augmentation of the images a function of `seed` and `epoch`.

        Without it their random numbers come from torch's global generator.
        """
        self._epoch.copy_(torch.tensor([seed, epoch]))

    def _draws(self, indices: Sequence[int]) -> Draws:
        seed, epoch = key = tuple(self._epoch.tolist())
        if epoch < 0:
            return torch.rand(len(indices), DRAWS).numpy()
        if self._table is None or self._table[0] != key:
            numbers = np.random.default_rng([seed, epoch]).random((len(self), DRAWS), dtype=np.float32)
            self._table = (seed, epoch), numbers
        return self._table[1][list(indices)]
