"""Image datasets on disk, made here: scikit-learn's digits as Parquet, and coloured squares as files in folders."""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 50), "red": (230, 30, 20)}


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_digits(folder: Path, train: int = 400, test: int = 200, names: bool = True) -> Path:
    """Write FOLDER/train-*.parquet and test-*.parquet in the Hub's layout: 8x8 grey images; returns FOLDER."""
    folder.mkdir(parents=True)
    digits = load_digits()
    images = [png((pixels / 16 * 255).astype(np.uint8)) for pixels in digits.images[: train + test]]
    label = datasets.ClassLabel(names=[f"digit {i}" for i in range(10)]) if names else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    for split, rows in {"train": range(train), "test": range(train, train + test)}.items():
        table = datasets.Dataset.from_dict(
            {
                "image": [{"bytes": images[i], "path": f"{i}.png"} for i in rows],
                "label": [int(digits.target[i]) for i in rows],
            },
            features=features,
        )
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def write_squares(folder: Path, train: int = 6, test: int = 3, size: tuple[int, int] = (12, 12)) -> Path:
    """Write FOLDER/train/<colour>/*.png and FOLDER/test/<colour>/*.png, of (width, height); returns FOLDER."""
    rng = np.random.default_rng(0)
    for split, count in {"train": train, "test": test}.items():
        for name, colour in COLOURS.items():
            target = folder / split / name
            target.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (size[1], size[0], 3)), 0, 255)
                (target / f"{i}.png").write_bytes(png(pixels.astype(np.uint8)))
    return folder
