"""The study folder: where everything lies, how it is read, how it is written.

    FOLDER/study.json                   the study's whole spec, its cells in order, the command and the versions
    FOLDER/cells/<hash>/result.json     one per finished cell, written atomically and last
    FOLDER/cells/<hash>/scales/         the cell's gradient scales, where they are recorded
    FOLDER/cells/<hash>/error.txt       why the last attempt at a cell failed, until it succeeds
    FOLDER/report/                      made by hf_proxadam.report

Nothing here imports torch, so that a finished study is recognised, and a report made, in seconds.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from hf_proxadam import atomic
from hf_proxadam.study.environment import environment

SCHEMA_VERSION = 1
CELL_COLUMNS = (
    *("optimizer", "optim", "optim_args", "variant", "loss_multiplier"),
    *("learning_rate", "weight_decay", "seed"),
)
# Results that were written before there were such columns are of cells with these values.
_LATER_COLUMNS = {"variant": "", "loss_multiplier": 1.0}
TIMING_COLUMNS = ("train_seconds", "samples_per_second")


def study_file(folder: Path) -> Path:
    """Where the study's spec lies."""
    return Path(folder) / "study.json"


def cell_folder(folder: Path, cell_hash: str) -> Path:
    """Where all that belongs to one cell lies."""
    return Path(folder) / "cells" / cell_hash


def result_file(folder: Path, cell_hash: str) -> Path:
    """The file whose presence says that a cell is done."""
    return cell_folder(folder, cell_hash) / "result.json"


def scales_folder(folder: Path, cell_hash: str) -> Path:
    """Where a cell's gradient scales lie (Parquet files; the folder is missing if none were recorded)."""
    return cell_folder(folder, cell_hash) / "scales"


def error_file(folder: Path, cell_hash: str) -> Path:
    """Where the error of a cell's last failed attempt lies."""
    return cell_folder(folder, cell_hash) / "error.txt"


def load_study(folder: Path) -> dict[str, Any]:
    """Read `study.json`: `schema_version`, `study`, `cells` (hashes in the grid's order), `command`, `environment`.

    Raises:
        ValueError: the folder is no study folder, or its file is torn or of another version.
    """
    path = study_file(folder)
    if not path.is_file():
        raise ValueError(f"{folder} is not a study folder: it has no study.json. Make one with `hf-proxadam compare`.")
    return _load(path, ("study", "cells"))


def says(folder: Path, study: dict[str, Any], cells: list[str]) -> bool:
    """Whether `study.json` is there and is of just this study."""
    if not study_file(folder).is_file():
        return False
    content = load_study(folder)
    return content["study"] == json.loads(json.dumps(study)) and content["cells"] == cells


def save_study(folder: Path, study: dict[str, Any], cells: list[str], command: list[str]) -> None:
    """Write `study.json`."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "study": study,
        "cells": cells,
        "command": command,
        "environment": environment(),
    }
    atomic.write_json(study_file(folder), content)


def load_result(folder: Path, cell_hash: str) -> dict[str, Any] | None:
    """Read one cell's result, or None if the cell is not finished.

    Raises:
        ValueError: the file is torn, of another version, or of another cell.
    """
    path = result_file(folder, cell_hash)
    if not path.is_file():
        return None
    result = _load(path, ("hash", "cell", "status", "curve", "timing"))
    if result["hash"] != cell_hash:
        raise ValueError(f"{path} holds the result of cell {result['hash']}: delete the file and run the study again.")
    result["cell"] = {**_LATER_COLUMNS, **result["cell"]}
    return result


def save_result(folder: Path, result: dict[str, Any]) -> None:
    """Write one cell's result, which makes the cell a finished one."""
    cell_hash = result["hash"]
    atomic.write_json(result_file(folder, cell_hash), {"schema_version": SCHEMA_VERSION, **result})
    error_file(folder, cell_hash).unlink(missing_ok=True)


def load_results(folder: Path) -> list[dict[str, Any]]:
    """Read the results of the study's finished cells, in the grid's order.

    Cells that an earlier version of the study left in the folder, and that the present one does not have, are not
    among
    them: the study's own list says which ones count.
    """
    results = (load_result(folder, cell_hash) for cell_hash in load_study(folder)["cells"])
    return [result for result in results if result is not None]


def load_runs(folder: Path) -> pd.DataFrame:
    """Read all finished cells as one table, a row per cell.

    Returns:
        Columns `hash`, `optimizer` (its label), `optim`, `optim_args`, `variant` (empty where the study has none),
        `loss_multiplier`, `learning_rate`, `weight_decay`, `seed`, `status` (`finished` or `diverged`),
        `validation_<metric>` and `test_<metric>` for every metric of the task (NaN where the run diverged),
        `train_seconds`, `samples_per_second`; sorted by the study's order of optimizers, then of variants, then loss
        multiplier, learning rate, weight decay and seed, all ascending.

    Raises:
        ValueError: the folder is no study folder, or a file in it is torn or of another version.
    """
    results = load_results(folder)
    splits = [(split, result[split]) for result in results for split in ("validation", "test") if result[split]]
    metrics = list(dict.fromkeys(f"{split}_{metric}" for split, values in splits for metric in values))
    rows = []
    for result in results:
        row = {"hash": result["hash"], **result["cell"], "status": result["status"], **result["timing"]}
        for split in ("validation", "test"):
            row |= {f"{split}_{metric}": value for metric, value in (result[split] or {}).items()}
        rows.append(row)
    measured = sorted(metrics, key=lambda column: (column.startswith("test_"), column))
    runs = pd.DataFrame(rows, columns=["hash", *CELL_COLUMNS, "status", *measured, *TIMING_COLUMNS])
    runs = runs.astype(dict.fromkeys([*measured, *TIMING_COLUMNS], "float64"))
    study = load_study(folder)["study"]
    order = {spec["label"]: i for i, spec in enumerate(study["optimizers"])}
    variants = [variant["label"] for variant in study.get("model_variants", [])]
    order_of_variants = {label: i for i, label in enumerate(variants)}
    keys = runs.assign(optimizer=runs["optimizer"].map(order), variant=runs["variant"].map(order_of_variants))
    by = ["optimizer", "variant", "loss_multiplier", "learning_rate", "weight_decay", "seed"]
    index = keys.sort_values(by, kind="stable").index
    return runs.loc[index].reset_index(drop=True)


def load_curves(folder: Path) -> pd.DataFrame:
    """Read all learning curves as one long table.

    Returns:
        Column `hash`, then the columns of the curves (`step`, `epoch`, `learning_rate`, `train_loss`, and, filled at
        evaluations only, `validation_loss`, `validation_<metric>`): a row per cell and step that has either.
    """
    points = [{"hash": result["hash"], **point} for result in load_results(folder) for point in result["curve"]]
    first = ["hash", "step", "epoch", "learning_rate", "train_loss"]
    others = sorted({name for point in points for name in point} - set(first))
    return pd.DataFrame(points, columns=[*first, *others])


def setting(point: dict[str, Any]) -> str:
    """What tells the grid that a cell is of from the study's other grids, for people; empty where it is the only one.

    >>> setting({"variant": "depth 8", "loss_multiplier": 10.0}), setting({"variant": "", "loss_multiplier": 1.0})
    ('depth 8, loss x 10', '')
    """
    multiplier = f"loss x {point['loss_multiplier']:g}" if point["loss_multiplier"] != 1 else ""
    return ", ".join(part for part in (point["variant"], multiplier) if part)


def _load(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read ({error}): delete the file and run the study again.") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        version = content.get("schema_version") if isinstance(content, dict) else None
        raise ValueError(
            f"{path} has schema version {version!r}, this hf_proxadam reads version {SCHEMA_VERSION}: "
            "use another output folder, or the hf_proxadam that wrote it."
        )
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: delete the file and run the study again.")
    return content
