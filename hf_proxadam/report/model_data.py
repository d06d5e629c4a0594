"""What the card of one fine-tuned model is computed from: the files that its training left in the output folder."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from hf_proxadam.report import scales
from hf_proxadam.report.cleaning import without_paths
from hf_proxadam.scales import derived

RUN, RESULTS, STATE = "run.json", "all_results.json", "trainer_state.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelContents:
    """What the card is made from, cleaned of paths: the same from the folder as from what was published of it.

    Attributes:
        run: `run.json`: `command`, `environment`, `script`, `task`, `base_model`, `training`, `optimizer`.
        results: `all_results.json`: `<split>_<metric>` for the splits `eval` and `test`, and `train_runtime` ...
        history: the log of `trainer_state.json`, a mapping per entry; empty where there is none.
        scales: the run's gradient scales, or None where none were recorded.
    """

    run: dict[str, Any]
    results: dict[str, float]
    history: list[dict[str, Any]]
    scales: pa.Table | None

    @property
    def optimizer(self) -> str:
        """The name that the Trainer was given."""
        return str(self.run["training"]["optim"])

    @functools.cached_property
    def modules(self) -> dict[str, pd.DataFrame]:
        """The optimizer's name to the scales per module; empty where none were recorded."""
        return {} if self.scales is None else {self.optimizer: derived.by_module(self.scales)}

    def scores(self, split: str) -> dict[str, float]:
        """The task's metrics, by their names, and the loss, of `eval` or `test`; empty where it was not evaluated."""
        names = [*self.run["task"]["metrics"], "loss"]
        return {name: self.results[f"{split}_{name}"] for name in names if f"{split}_{name}" in self.results}


def is_model(folder: Path) -> bool:
    """Whether the folder is one that a training left: a model's configuration and its weights."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def read(folder: Path) -> ModelContents:
    """Read what a training left.

    Raises:
        ValueError: a file is missing or can't be read.
    """
    run = without_paths(_load(folder / RUN, ("command", "environment", "task", "base_model", "training", "optimizer")))
    for part, keys in {"task": ("metrics", "dataset", "splits", "pipeline_tag"), "training": ("optim",)}.items():
        missing = [key for key in keys if key not in run[part]]
        if missing:
            raise ValueError(f"{folder / RUN} has no {', '.join(missing)} in {part}: run the training script again.")
    results = _load(folder / RESULTS)
    for name, value in results.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{folder / RESULTS} has {value!r} as {name}, which is not a number: evaluate again.")
    state = _load(folder / STATE, ("log_history",)) if (folder / STATE).is_file() else {"log_history": []}
    return ModelContents(
        run=run, results=results, history=without_paths(state["log_history"]), scales=scales.load(folder / "scales")
    )


def is_finite(value: Any) -> bool:
    """Whether a value of the log can be told as a number."""
    return isinstance(value, int | float) and math.isfinite(value)


def _load(path: Path, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{path.parent} has no {path.name}, which the card is computed from: scripts/run_glue.py writes it."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read ({error}): run the training script again.") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing or not isinstance(content, dict):
        raise ValueError(f"{path} has no {', '.join(missing) or 'entries'}: run the training script again.")
    return content
