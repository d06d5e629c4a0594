"""A study folder's copy in an object store, or in whatever else fsspec reaches."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import fsspec

from hf_proxadam import atomic
from hf_proxadam.study import RunnerError, store


def is_url(place: str) -> bool:
    """Whether this names an object store, and not a folder.

    >>> is_url("s3://bucket/study"), is_url("runs/study"), is_url("C:/runs/study")
    (True, False, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place) is not None


class Mirror:
    """Fetches finished cells before a study runs, and sends those that it finishes, and the report.

    A cell lies under the hash of its whole spec and its result is sent last, so cells in the store are whole. Any
    number of machines may work on one URL: at worst they train the same cell twice, and come to the same result.

    Args:
        url: `PROTOCOL://PATH`. Whom the store takes us for is fsspec's business (its configuration, the environment).
        folder: the study folder on this machine.

    Raises:
        ValueError: the URL has credentials in it, or fsspec does not know its protocol.
    """

    def __init__(self, url: str, folder: Path) -> None:
        if re.search(r"://[^/]*:[^/]*@", url):  # abfs://CONTAINER@ACCOUNT is none
            raise ValueError(
                "The URL of --output_dir must not hold credentials, for the command is recorded: give them to fsspec "
                "by the environment or its configuration."
            )
        try:
            self.files, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ValueError(f"--output_dir is {url}; it must be a folder, or a URL of fsspec's ({error}).") from error
        self.url, self.root, self.folder = url, root.rstrip("/"), Path(folder)

    def fetch(self, hashes: Iterable[str]) -> None:
        """Fetch those of the cells that are finished there and not here.

        Raises:
            RunnerError: the store can't be read.
            ValueError: a result there is torn, or of another version.
        """
        fetched = []
        with self._telling("can't be read"):
            there = self._finished()
            for cell_hash in hashes:
                if cell_hash in there and not store.result_file(self.folder, cell_hash).is_file():
                    for path in sorted(there[cell_hash], key=_is_result):  # the result last, as it was sent
                        with atomic.replacing(self.folder / path.removeprefix(f"{self.root}/")) as aside:
                            self.files.get_file(path, str(aside))
                    fetched.append(cell_hash)
        for cell_hash in fetched:
            try:
                store.load_result(self.folder, cell_hash)
            except ValueError as error:
                store.result_file(self.folder, cell_hash).unlink()
                place = f"{self.url}/cells/{cell_hash}"
                raise ValueError(
                    f"{place} is damaged, or of another version: remove it there, or use another URL."
                ) from error

    def send_cell(self, cell_hash: str) -> None:
        """Send a cell that was just finished. Where this fails, `send` does it at the end, or says why it can't."""
        with contextlib.suppress(Exception):
            self._send_cell(cell_hash)

    def send(self, hashes: Iterable[str]) -> None:
        """Send `study.json`, and those of the cells that are finished here and not there.

        Raises:
            RunnerError: the store can't be written to. Nothing is lost: all of it is here.
        """
        with self._telling(f"can't be written to; all results are in {self.folder}, and the same command sends them"):
            there = self._finished()
            for cell_hash in hashes:
                if cell_hash not in there and store.result_file(self.folder, cell_hash).is_file():
                    self._send_cell(cell_hash)
            self._send_file(store.study_file(self.folder))

    def send_report(self) -> None:
        """Send the report, in the place of the one that is there.

        Raises:
            RunnerError: the store can't be written to.
        """
        with self._telling(f"can't be written to; the report is in {self.folder}, and the same command sends it"):
            for local in _files(self.folder / "report"):
                self._send_file(local)

    def _finished(self) -> dict[str, list[str]]:
        """The files of each cell that has a result there."""
        self.files.invalidate_cache()
        cells: dict[str, list[str]] = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self.files.find(f"{self.root}/cells"):
                cells.setdefault(path.removeprefix(f"{self.root}/cells/").split("/")[0], []).append(path)
        return {cell_hash: paths for cell_hash, paths in cells.items() if any(map(_is_result, paths))}

    def _send_cell(self, cell_hash: str) -> None:
        there = f"{self.root}/cells/{cell_hash}"
        if self.files.exists(there):  # what a killed sender left: its scales may be cut into other files
            self.files.rm(there, recursive=True)
        for local in sorted(_files(store.cell_folder(self.folder, cell_hash)), key=lambda path: _is_result(str(path))):
            self._send_file(local)

    def _send_file(self, local: Path) -> None:
        there = f"{self.root}/{local.relative_to(self.folder).as_posix()}"
        self.files.makedirs(there.rpartition("/")[0], exist_ok=True)
        self.files.put_file(str(local), there)

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the store's own library raises
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunnerError(f"{self.url} {what} ({reason}).") from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _is_result(path: str) -> bool:
    return path.endswith("/result.json")
