"""What the report takes from recorded gradient scales, by the definitions of `hf_proxadam.scales.derived`.

All functions but `load` take one run's records, added up to modules by `hf_proxadam.scales.derived.by_module`.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from hf_proxadam.scales import derived, store


def load(folder: Path) -> pa.Table | None:
    """Read one run's records; None where there are none.

    Raises:
        ValueError: the folder mixes the records of several runs.
    """
    return store.load(folder) if store.parts(Path(folder)) else None


def by_step(modules: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Scale (log2 of the root mean square over the finite coordinates) of every module in every recorded step.

    Args:
        modules: one run's records per module.
        quantity: `gradient`, `update` or `weight`.

    Returns:
        A row per module in the model's order, a column per step in ascending order; NaN where a module's coordinates
        are all zero or none of them is finite.
    """
    rows = modules[modules["quantity"] == quantity]
    table = rows.pivot(index="module", columns="step", values="scale").sort_index(axis="columns")
    return table.reindex(rows["module"].drop_duplicates())


def ratio_by_step(modules: pd.DataFrame) -> pd.DataFrame:
    """log2 of rms(update) / rms(weight) of every module in every recorded step, laid out as by `by_step`."""
    ratio = derived.update_to_weight(modules).pivot(index="module", columns="step", values="ratio")
    ordered = ratio.reindex(modules["module"].drop_duplicates()).sort_index(axis="columns")
    return ordered.where(ordered > 0).apply(np.log2)


def by_epoch(modules: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """The records of each epoch, numbered from 1; all of them as one epoch where the loop did not say.

    Args:
        modules: one run's records per module.
    """
    if modules["epoch"].isna().any():
        return {1: modules}
    # A step that ends the first epoch has done exactly 1 of them.
    numbers = np.ceil(modules["epoch"] - 1e-9).clip(lower=1).astype(int)
    return {int(epoch): rows for epoch, rows in modules.groupby(numbers)}


def distribution(modules: pd.DataFrame, quantity: str) -> tuple[npt.NDArray[np.float64], float]:
    """Distribution of log2 |x| over all finite coordinates and recorded steps.

    Args:
        modules: one run's records per module.
        quantity: `gradient`, `update` or `weight`.

    Returns:
        Shares per bin, shape (278,), and the share that is exactly zero; together they add up to 1.
    """
    rows = modules[(modules["quantity"] == quantity) & (modules["finite"] > 0)]
    counts = np.sum([np.zeros(store.BINS), *rows["histogram"]], axis=0)
    total = float(rows["finite"].sum())
    return (counts / total, float(rows["zeros"].sum()) / total) if total else (counts, 0.0)


def spread_over_coordinates(shares: npt.NDArray[np.float64]) -> float:
    """Inter-quartile range of log2 |x| over the non-zero coordinates of a distribution, in octaves, or NaN."""
    return float(derived.spread_within(shares[np.newaxis])[0])


def spread_between_modules(modules: pd.DataFrame, quantity: str) -> float:
    """Inter-quartile range of the modules' scales, in octaves: the median over the recorded steps."""
    rows = modules[modules["quantity"] == quantity]
    return float(np.median([derived.spread_between(step["rms"].to_numpy()) for _, step in rows.groupby("step")]))


def update_to_weight(modules: pd.DataFrame) -> float:
    """Root mean square of a module's update over that of its weights: the median over modules and recorded steps."""
    return float(derived.update_to_weight(modules)["ratio"].median())
