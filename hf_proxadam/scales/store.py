"""The records on the disk: a folder of Parquet part files, each of them whole or not there.

A part is named after the first step that it holds (`part-000000010.parquet`), is written aside and renamed, and
carries the schema with units and the name of its run in its metadata. Nothing else is kept in the folder, so that
`datasets.load_dataset("parquet", data_dir=folder)` and `pandas.read_parquet(folder)` read it as it is.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from hf_proxadam.atomic import replacing

SCHEMA_VERSION = 1
MIN_EXPONENT = -149
"""The exponent that the first bin of a histogram counts: floor(log2 |x|) of the smallest float32 subnormal."""
BINS = 278
"""The number of bins of a histogram, one per power of two."""
_RUN = b"hf_proxadam.run"


def _field(name: str, kind: pyarrow.DataType, unit: str, description: str) -> pyarrow.Field:
    return pyarrow.field(name, kind, metadata={"unit": unit, "description": description})


SCHEMA = pyarrow.schema(
    [
        _field("step", pyarrow.int64(), "optimizer steps", "number of the step, counted from 1"),
        _field("epoch", pyarrow.float64(), "epochs", "epochs done after the step; null where unknown"),
        _field("module", pyarrow.string(), "", "name of the module that owns the parameter"),
        _field("parameter", pyarrow.string(), "", "full name of the parameter"),
        _field("quantity", pyarrow.string(), "", "gradient (reduced, unscaled, clipped), update or weight"),
        _field("numel", pyarrow.int64(), "entries", "size of the parameter over all processes"),
        _field("rms", pyarrow.float64(), "of the quantity", "root mean square of the finite entries; null if none"),
        _field("min_nonzero", pyarrow.float64(), "of the quantity", "smallest finite magnitude but zero; null if none"),
        _field("max", pyarrow.float64(), "of the quantity", "largest finite magnitude; null if no entry is finite"),
        _field("zeros", pyarrow.int64(), "entries", "entries that are exactly zero"),
        _field("nonfinite", pyarrow.int64(), "entries", "entries that are infinite or NaN"),
        _field("sum_squares", pyarrow.float64(), "of the quantity, squared", "sum of squares over the finite entries"),
        _field("finite", pyarrow.int64(), "entries", "entries that are finite, zeros included"),
        _field("learning_rate", pyarrow.float64(), "", "of the parameter's group in this step"),
        _field(
            "histogram",
            pyarrow.list_(pyarrow.float64()),
            "entries",
            "non-zero finite entries by floor(log2 |x|): bin i counts the exponent i - 149; weighted where sampled",
        ),
        _field("sampled_share", pyarrow.float64(), "1", "share of the entries behind the histogram; 1 is exact"),
        _field("clip_factor", pyarrow.float64(), "1", "what clipping multiplied the gradients with; null if unknown"),
    ],
    metadata={"hf_proxadam.schema_version": str(SCHEMA_VERSION)},
)


class Store:
    """Writes the parts of one run to a folder.

    Args:
        folder: Where the parts go; it is made where it is missing.
        run: Name of the run, kept in every part and compared before anything is written.

    Raises:
        ValueError: If the folder can't be written.
    """

    def __init__(self, folder: str | os.PathLike[str], run: str) -> None:
        self.folder = Path(folder)
        self.run = run
        with self._refusing():
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe.{os.getpid()}.tmp"
            probe.touch()
            probe.unlink()

    def begin(self, step: int, replace: bool = False) -> None:
        """Make the folder ready for a run that has done `step` steps: rows of later steps are taken out.

        Args:
            step: Steps done so far; 0 for a new run.
            replace: Whether the records of another run are removed; they are refused otherwise.

        Raises:
            ValueError: If the folder holds records of another run and `replace` is false.
        """
        mine = {path: run_of(path) == self.run for path in parts(self.folder)}
        if not replace and not all(mine.values()):
            raise ValueError(
                f"{str(self.folder)!r} holds the gradient scales of another run; give a folder of its own to each "
                "run, resume the run from its checkpoint, or pass replace=True to delete them."
            )
        with self._refusing():
            # From the last to the first, so that a kill in between leaves no gap.
            for path in reversed(mine):
                _drop_after(path, step if mine[path] else -1)
            for left_by_a_kill in self.folder.glob(".part-*.tmp"):
                left_by_a_kill.unlink()

    def write(self, columns: dict[str, list[Any]]) -> None:
        """Write one part. `columns` maps every name of the schema to its values, in the order of the steps.

        Raises:
            OSError: If the disk refuses it, or another run has written a part for the same steps in the meantime
                (FileExistsError); nothing is left behind then.
        """
        if not columns["step"]:
            return
        path = self.folder / f"part-{columns['step'][0]:09d}.parquet"
        if path.exists() and run_of(path) != self.run:
            raise FileExistsError(errno.EEXIST, "another run writes there too", str(path))
        schema = SCHEMA.with_metadata({**SCHEMA.metadata, _RUN: self.run.encode()})
        _write(pyarrow.Table.from_pydict(columns, schema=schema), path)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"The gradient scales can't be written to {str(self.folder)!r} ({error.strerror or error}); "
                "give a folder that this user may write to, with room on its disk."
            ) from error


def load(folder: str | os.PathLike[str]) -> pyarrow.Table:
    """Read the records of a run: one row per step, parameter and quantity, ordered by step.

    The columns, their units and their meaning are those of `SCHEMA` (`load(folder).schema.field("rms").metadata`).
    A run may be read while it is being recorded.

    Raises:
        ValueError: If the folder has no records, or those of several runs.
    """
    paths = parts(Path(folder))
    if not paths:
        raise ValueError(f"{str(folder)!r} has no gradient scales (part-*.parquet); give a recorded run's folder.")
    if len({run_of(path) for path in paths}) > 1:
        raise ValueError(f"{str(folder)!r} mixes the gradient scales of several runs; give the folder of one run.")
    return pyarrow.concat_tables([pyarrow.parquet.ParquetFile(path).read() for path in paths])


def parts(folder: Path) -> list[Path]:
    """List the part files of a folder, by step."""
    return sorted(folder.glob("part-*.parquet"))


def run_of(path: Path) -> str:
    """Read the name of the run that wrote a part.

    Raises:
        ValueError: If the file is no Parquet file.
    """
    try:
        return (pyarrow.parquet.read_schema(path).metadata or {}).get(_RUN, b"").decode()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{str(path)!r} can't be read as gradient scales ({error}); take it away.") from error


def _drop_after(path: Path, step: int) -> None:
    table = pyarrow.parquet.ParquetFile(path).read()
    kept = table.filter(pyarrow.compute.less_equal(table["step"], step))
    if kept.num_rows == 0:
        path.unlink()
    elif kept.num_rows < table.num_rows:
        _write(kept, path)


def _write(table: pyarrow.Table, path: Path) -> None:
    with replacing(path) as aside:
        pyarrow.parquet.write_table(table, aside, compression="zstd")
