"""What is published of a folder, file by file, and what is left out of it and why. Nothing here needs a network."""

import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from hf_proxadam.report import card, data, model_data
from hf_proxadam.report.cleaning import without_paths

Kind = Literal["study", "model"]
CARD = "README.md"
_FIGURES = tuple(f"figures/{name}" for name in card.CAPTIONS)
_STUDY = (CARD, data.STUDY, "runs.csv", "runs.parquet", "curves.parquet", "scales.parquet", *_FIGURES)
# A list of what may go and not of what may not: whatever else lies in the folder stays there.
_MODEL = (
    *(CARD, model_data.RUN, "*_results.json", model_data.STATE, "*.safetensors", "*.safetensors.index.json"),
    *("config.json", "*_config.json", "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "scales/part-*.parquet", *_FIGURES),
)
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack")
# Files of a model that may name where it was read from; in other entries a slash may be part of a token.
_PLACE = re.compile(r"(path|file|dir|folder)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
    """One file to publish.

    Attributes:
        path: its name in the repository.
        source: where it lies, or, where paths were taken out of it, its contents.
    """

    path: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @functools.cached_property
    def git_sha1(self) -> str:
        """The name that git gives to its contents."""
        return self._digest(hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False))

    @functools.cached_property
    def sha256(self) -> str:
        """The name that Git LFS gives to its contents."""
        return self._digest(hashlib.sha256())

    def read(self) -> bytes:
        """Its contents."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    def _digest(self, digest: Any) -> str:
        if isinstance(self.source, bytes):
            digest.update(self.source)
        else:
            with self.source.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return str(digest.hexdigest())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Publication:
    """What one folder becomes on the Hub.

    Attributes:
        kind: `study`, a dataset repository there, or `model`, a model repository.
        root: the folder that the files' names are relative to.
        files: what is published.
        left_out: name and reason of what is not; a folder's name ends in a slash.
    """

    kind: Kind
    root: Path
    files: tuple[File, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def repo_type(self) -> str:
        """The Hub's kind of repository."""
        return "dataset" if self.kind == "study" else "model"

    @property
    def card(self) -> str:
        """The text of README.md."""
        return next(file for file in self.files if file.path == CARD).read().decode()

    def owns(self, path: str) -> bool:
        """Whether a publication of this kind may have written `path` in the repository."""
        return path in (_STUDY if self.kind == "study" else _FIGURES) or (
            self.kind == "model" and fnmatch.fnmatchcase(path, "scales/part-*.parquet")
        )


def find(folder: Path) -> tuple[Kind, Path]:
    """Tell by its contents what a folder holds, and where the part to publish begins.

    Raises:
        ValueError: it holds neither a study nor a fine-tuned model.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    if (folder / data.STUDY).is_file():
        return "study", folder if (folder / "runs.parquet").is_file() else folder / "report"
    if model_data.is_model(folder) or (folder / model_data.RUN).is_file():
        return "model", folder
    raise ValueError(
        f"{folder} is neither a study folder (with {data.STUDY}) nor that of a fine-tuned model (with config.json, "
        f"*.safetensors and {model_data.RUN}); pickled weights are never published."
    )


def collect(folder: Path) -> Publication:
    """List what is published of a folder, with its paths taken out, and what is left out.

    Raises:
        ValueError: the folder holds nothing to publish, a file is missing, or a symbolic link leads out of the folder.
    """
    kind, root = find(folder)
    files: list[File] = []
    left_out: list[tuple[str, str]] = []
    for name in _walk(root):
        path = root / name
        if name.endswith("/"):
            left_out.append((name, "a checkpoint" if name.startswith("checkpoint-") else "not a part of the card"))
        elif path.suffix.lower() in _PICKLES:
            left_out.append((name, "may hold a pickle, which can run code where it is loaded"))
        elif not is_part(kind, name):
            left_out.append((name, "not a part of the card" if kind == "study" else "not a part of the model"))
        elif not path.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{path} is a symbolic link out of its folder: put the file itself there, or remove it.")
        elif not path.is_file():
            left_out.append((name, "not a plain file"))
        else:
            files.append(File(path=name, source=_cleaned(path)))
    needed = ("runs.parquet", data.STUDY) if kind == "study" else ("config.json", model_data.RUN)
    missing = sorted({CARD, *needed} - {file.path for file in files})
    if kind == "model" and not any(file.path.endswith(".safetensors") for file in files):
        missing.append("*.safetensors")
    if missing:
        raise ValueError(f"{root} has no {', '.join(missing)}, without which it can't be published.")
    return Publication(kind=kind, root=root, files=tuple(files), left_out=tuple(left_out))


def is_part(kind: Kind, path: str) -> bool:
    """Whether a file of that name belongs to a publication of that kind."""
    return any(_matches(path, pattern) for pattern in (_STUDY if kind == "study" else _MODEL))


def _walk(root: Path) -> Iterator[str]:
    """Names of all files, and, with a slash after it, of every folder that nothing is published of."""
    used = {"figures", "scales"}
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        path = root / entry.name
        if not path.is_dir():
            yield entry.name
        elif entry.name not in used or not any(path.iterdir()):
            yield f"{entry.name}/"
        else:
            yield from (
                f"{entry.name}/{child.name}" + ("/" if child.is_dir() else "") for child in sorted(path.iterdir())
            )


def _matches(name: str, pattern: str) -> bool:
    # fnmatch's star would also take slashes.
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _cleaned(path: Path) -> Path | bytes:
    """The file, or its contents without absolute paths where it is one that may have some."""
    if path.suffix != ".json" or not (path.name in (model_data.RUN, model_data.STATE) or "config" in path.name):
        return path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} can't be read ({error}): make it again before it is published.") from error
    cleaned = without_places(content) if "config" in path.name else without_paths(content)
    return path if cleaned == content else (json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n").encode()


def without_places(value: Any, key: str = "") -> Any:
    """Take absolute paths out of those entries of a configuration that are meant for places; others stay.

    >>> without_places({"_name_or_path": "/home/ada/bert", "pad_token": "/"})
    {'_name_or_path': 'bert', 'pad_token': '/'}
    """
    if isinstance(value, dict):
        return {name: without_places(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [without_places(item, key) for item in value]
    return without_paths(value) if _PLACE.search(key) else value
