"""The data beside the card: taken from the study's files, cleaned of paths, and read back to draw and to count.

Everything that the card says is computed from what `read` returns, that is from the files that lie beside it.
"""

import dataclasses
import functools
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_proxadam import atomic
from hf_proxadam.report import scales
from hf_proxadam.report.cleaning import without_paths
from hf_proxadam.scales import derived
from hf_proxadam.study import statistics, store

STUDY = "study.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What a report is made from.

    Attributes:
        study: `study` (the spec), `cells` (hashes of the whole grid), `command`, `environment`, and `live_optimizers`
            (per label of `by_label`: `class`, `defaults` and `groups` of the optimizer that really ran at the chosen
            cell).
        runs: the table of `hf_proxadam.study.store.load_runs`.
        curves: the table of `hf_proxadam.study.store.load_curves`.
        scales: gradient scales of the shown runs with a column `hash`, or None where none were recorded.
    """

    study: dict[str, Any]
    runs: pd.DataFrame
    curves: pd.DataFrame
    scales: pa.Table | None

    @property
    def metric(self) -> str:
        """Name of the metric that cells are chosen by, without its split."""
        return str(self.study["study"].get("selection_metric", "accuracy"))

    @property
    def greater_is_better(self) -> bool:
        """Whether the largest value of the metric is the best."""
        return bool(self.study["study"].get("greater_is_better", True))

    @functools.cached_property
    def chosen(self) -> pd.DataFrame:
        """The chosen cell of each optimizer, as `hf_proxadam.study.statistics.choose_cells` gives it."""
        return statistics.choose_cells(self.runs, self.metric, self.greater_is_better)

    @property
    def optimizers(self) -> list[str]:
        """Labels of the optimizers that have runs, in the study's order."""
        return list(self.runs["optimizer"].unique())

    @property
    def baseline(self) -> str | None:
        """Label of the optimizer that the others are compared with: the first Adam-l2 among them."""
        rows = self.runs[self.runs["optim"] == "adam_l2"]
        return None if rows.empty else str(rows["optimizer"].iloc[0])

    @functools.cached_property
    def parts(self) -> dict[str, "Contents"]:
        """The study's settings (model variant, loss multiplier), each a comparison of its own: title to its contents.

        In the study's order; the title is empty where there is but one.
        """
        parts = {}
        for point, runs in self.runs.groupby(list(statistics.SETTING), sort=False):
            title = store.setting(dict(zip(statistics.SETTING, point, strict=True))) or f"loss x {point[1]:g}"
            parts[title] = dataclasses.replace(self, runs=runs.reset_index(drop=True))
        return parts if len(parts) > 1 else {"": self}

    @functools.cached_property
    def by_label(self) -> "Contents":
        """The same with an optimizer of its own for every optimizer and setting: `adam_l2 (depth 8)`."""
        if len(self.parts) == 1:
            return self
        renamed = [
            part.runs.assign(optimizer=part.runs["optimizer"] + f" ({title})", variant="", loss_multiplier=1.0)
            for title, part in self.parts.items()
        ]
        return dataclasses.replace(self, runs=pd.concat(renamed, ignore_index=True))

    @functools.cached_property
    def label_of(self) -> dict[str, str]:
        """Hash of a run to the label of its optimizer."""
        return dict(zip(self.runs["hash"], self.runs["optimizer"], strict=True))

    @functools.cached_property
    def modules(self) -> dict[str, pd.DataFrame]:
        """Label to the shown run's scales (of `hf_proxadam.scales.derived.by_module`), in the study's order."""
        if self.scales is None:
            return {}
        tables = {
            self.label_of[cell_hash]: derived.by_module(self.scales.filter(pc.field("hash") == cell_hash))
            for cell_hash in self.scales["hash"].unique().to_pylist()
            if cell_hash in self.label_of
        }
        return {label: tables[label] for label in self.optimizers if label in tables}


def collect(folder: Path) -> Contents:
    """Take what the report needs out of a study folder.

    Raises:
        ValueError: it is no study folder, a file in it can't be read, or no cell is finished.
    """
    results = store.load_results(folder)
    if not results:
        raise ValueError(f"{folder} has no finished cell to report on: let `hf-proxadam compare` finish one first.")
    study = {key: value for key, value in store.load_study(folder).items() if key != "schema_version"}
    runs, curves = store.load_runs(folder), store.load_curves(folder)
    if not [column for column in runs if str(column).startswith("validation_")]:
        raise ValueError(
            f"All {len(runs)} finished cells of {folder} diverged: there is nothing to choose from or to draw."
        )
    contents = Contents(study=study, runs=runs, curves=curves, scales=None)
    live = {result["hash"]: result.get("optimizer") for result in results}
    shown = chosen_runs(contents.by_label).groupby("optimizer", sort=False)["hash"].first()
    study["live_optimizers"] = {label: live[cell_hash] for label, cell_hash in shown.items()}
    for kind, given in (("optimizers", contents.optimizers), ("model variants", list(runs["variant"].unique()))):
        if len({without_paths(label) for label in given}) < len(given):
            raise ValueError(
                f"Labels {sorted(given)} can't be told apart without their paths: give the {kind} other labels."
            )
    for column in ("optimizer", "optim", "optim_args", "variant"):
        runs[column] = runs[column].map(without_paths, na_action="ignore").astype("string")
    shown_scales = _shown_scales(folder, contents.by_label)
    return Contents(study=without_paths(study), runs=runs, curves=curves, scales=shown_scales)


def write(contents: Contents, report: Path) -> None:
    """Write the data files of a report, each of them atomically."""
    atomic.write_json(report / STUDY, contents.study)
    atomic.write_text(report / "runs.csv", contents.runs.to_csv(index=False, lineterminator="\n"))
    _write_parquet(contents.runs, report / "runs.parquet")
    _write_parquet(contents.curves, report / "curves.parquet")
    if contents.scales is None:
        (report / "scales.parquet").unlink(missing_ok=True)
    else:
        _write_parquet(contents.scales, report / "scales.parquet")


def read(report: Path) -> Contents:
    """Read the data files of a report."""
    scales_file = report / "scales.parquet"
    return Contents(
        study=json.loads((report / STUDY).read_text(encoding="utf-8")),
        runs=pd.read_parquet(report / "runs.parquet"),
        curves=pd.read_parquet(report / "curves.parquet"),
        scales=pq.read_table(scales_file) if scales_file.is_file() else None,
    )


def chosen_runs(contents: Contents) -> pd.DataFrame:
    """The runs at the chosen cells, those that did not diverge first, then by seed."""
    runs = contents.runs.merge(contents.chosen[statistics.CELL], on=statistics.CELL)
    order = {label: i for i, label in enumerate(contents.optimizers)}
    keys = runs.assign(optimizer=runs["optimizer"].map(order))
    return runs.loc[keys.sort_values(["optimizer", "status", "seed"], key=_finished_first, kind="stable").index]


def _finished_first(column: "pd.Series[Any]") -> "pd.Series[Any]":
    return column.ne("finished") if column.name == "status" else column


def _shown_scales(folder: Path, contents: Contents) -> pa.Table | None:
    """Scales of one run per optimizer: of the first seed at its chosen cell that has any."""
    tables = []
    for _, runs in chosen_runs(contents).groupby("optimizer", sort=False):
        for cell_hash in runs["hash"]:
            table = scales.load(store.scales_folder(folder, cell_hash))
            if table is not None:
                tables.append(table.add_column(0, "hash", pa.array([cell_hash] * table.num_rows)))
                break
    return pa.concat_tables(tables) if tables else None


def _write_parquet(table: pa.Table | pd.DataFrame, path: Path) -> None:
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    buffer = io.BytesIO()
    # Without the table's own metadata (pandas' version, the name of a run); those of the columns, such as units, stay.
    pq.write_table(table.replace_schema_metadata(), buffer, compression="zstd")
    atomic.write_bytes(path, buffer.getvalue())
