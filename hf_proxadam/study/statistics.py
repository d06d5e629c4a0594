"""What a table of runs says, and how surely: the cell is chosen on validation data and reported on test data.

All functions take the table of `hf_proxadam.study.store.load_runs` and return tables. Metrics are shares in [0, 1]
where they are accuracies; "a point" is 0.01.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

CELL = ["optimizer", "learning_rate", "weight_decay"]
# What a study's grids differ by, where it has several: all functions but `rank_correlation` take the runs of one.
SETTING = ("variant", "loss_multiplier")
MIN_VARIANTS_FOR_CORRELATION = 3
MIN_SEEDS_FOR_INTERVAL = 3
CONFIDENCE = 0.95
RESAMPLES = 9999
BOOTSTRAP_SEED = 20220200089
POINT = 0.01


def grid_means(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Average `column` over the seeds of every (optimizer, learning rate, weight decay).

    Returns:
        Columns `optimizer`, `learning_rate`, `weight_decay`, `column` (mean over the runs that did not diverge, NaN if
        all did), `n_seeds` (all runs), `n_diverged`; in the order of the optimizers in `runs`, then ascending.
    """
    means = (
        runs.assign(_diverged=runs["status"].eq("diverged"))
        .groupby(CELL, sort=True)
        .agg(**{column: (column, "mean"), "n_seeds": ("seed", "size"), "n_diverged": ("_diverged", "sum")})
        .reset_index()
    )
    order = {label: i for i, label in enumerate(runs["optimizer"].unique())}
    by_optimizer = means["optimizer"].map(order)
    return means.loc[by_optimizer.sort_values(kind="stable").index].reset_index(drop=True)


def choose_cells(runs: pd.DataFrame, metric: str, greater_is_better: bool = True) -> pd.DataFrame:
    """Choose, per optimizer, the (learning rate, weight decay) with the best mean validation metric over the seeds.

    A diverged run is worse than any that did not diverge: cells are ranked by how many of their runs diverged, then by
    the mean of the others. Of equals the smaller learning rate wins, then the smaller weight decay.

    Args:
        runs: the table of `load_runs`.
        metric: name of the metric without its split, such as `accuracy`.
        greater_is_better: whether the largest value is the best.

    Returns:
        One row per optimizer, in the order of `runs`: `optimizer`, `learning_rate`, `weight_decay`,
        `validation_<metric>` (mean over seeds), `n_seeds`, `n_diverged`.

    Raises:
        ValueError: `runs` has no such metric.
    """
    column = _column(runs, "validation", metric)
    means = grid_means(runs, column)
    signed = -means[column] if greater_is_better else means[column]
    ranked = means.assign(_signed=signed).sort_values(
        ["n_diverged", "_signed", "learning_rate", "weight_decay"], kind="stable", na_position="last"
    )
    best = ranked.groupby("optimizer", sort=False).head(1).sort_index()
    return best.drop(columns="_signed").reset_index(drop=True)


def summarise(
    runs: pd.DataFrame,
    chosen: pd.DataFrame,
    metric: str = "accuracy",
    greater_is_better: bool = True,
    baseline: str = "adam_l2",
) -> pd.DataFrame:
    """Report the chosen cells on the test split, with the spread over seeds and the difference to a baseline.

    Seeds are paired between optimizers: the difference is taken seed by seed, over the seeds that both have finished.

    Args:
        runs: the table of `load_runs`.
        chosen: the table of `choose_cells`.
        metric: name of the metric without its split.
        greater_is_better: whether the largest value is the best.
        baseline: label of the optimizer that the others are compared with.

    Returns:
        One row per optimizer, in the order of `chosen`:

        - `optimizer`, `learning_rate`, `weight_decay`: the chosen cell;
        - `n_seeds`: its runs that did not diverge, over which the next four go;
        - `mean`, `sd`: of the test metric (`sd` with n - 1; NaN for one seed);
        - `low`, `high`: bootstrap 95 % interval of the mean (percentile method, fixed seed), NaN with fewer than 3
          seeds;
        - `difference`, `difference_low`, `difference_high`, `n_pairs`: mean of (this - baseline) over common seeds,
          with its interval by the same rule; NaN and 0 for the baseline itself and where there is none;
        - `grid_runs`, `diverged`: runs of this optimizer over its whole grid, and how many of them diverged;
        - `grid_cells`, `share_within_point`: its (learning rate, weight decay) cells, and the share of them whose mean
          validation metric is within 0.01 of its best cell's (a cell with a diverged run is not).

    Raises:
        ValueError: `runs` has no such metric.
    """
    validation, test = _column(runs, "validation", metric), _column(runs, "test", metric)
    by_seed = {}
    for row in chosen.to_dict("records"):
        of_cell = runs[np.logical_and.reduce([runs[key] == row[key] for key in CELL])]
        by_seed[row["optimizer"]] = of_cell.set_index("seed")[test].dropna().sort_index()
    means = grid_means(runs, validation)
    rows = []
    for row in chosen.to_dict("records"):
        label = row["optimizer"]
        own, whole, cells = by_seed[label], runs[runs["optimizer"] == label], means[means["optimizer"] == label]
        low, high = bootstrap_interval(own.to_numpy())
        if baseline in by_seed and label != baseline:
            differences = (own - by_seed[baseline]).dropna().to_numpy()
        else:
            differences = np.empty(0)
        difference_low, difference_high = bootstrap_interval(differences)
        sign = 1 if greater_is_better else -1
        behind = sign * (row[validation] - cells[validation])
        # 1e-9: 0.95 - 0.94 is a little more than 0.01 in floating point.
        within = (behind <= POINT + 1e-9) & (cells["n_diverged"] == 0)
        rows.append(
            {
                **{key: row[key] for key in CELL},
                "n_seeds": len(own),
                "mean": own.mean(),
                "sd": own.std(ddof=1),
                "low": low,
                "high": high,
                "difference": differences.mean() if differences.size else np.nan,
                "difference_low": difference_low,
                "difference_high": difference_high,
                "n_pairs": differences.size,
                "grid_runs": len(whole),
                "diverged": int(whole["status"].eq("diverged").sum()),
                "grid_cells": len(cells),
                "share_within_point": float(within.mean()),
            }
        )
    return pd.DataFrame(rows)


def rank_correlation(points: pd.DataFrame) -> pd.DataFrame:
    """Correlate, over a study's settings, how far an optimizer is ahead of the baseline and how far scales spread.

    Args:
        points: a row per optimizer and setting: `optimizer`, `variant`, `advantage` (of the test metric over the
            baseline's, positive where the optimizer is better) and `spread` (of the scales of the baseline's gradients
            between modules, in octaves).

    Returns:
        One row per optimizer, in the order of `points`: `optimizer`, `n_points` (settings with both numbers) and
        Spearman's `correlation`: NaN with fewer than 3 variants among them, from which nothing is claimed, and where
        all points have the same advantage or the same spread.
    """
    rows = []
    for label, own in points.groupby("optimizer", sort=False):
        known = own.dropna(subset=["advantage", "spread"])
        varied = min(known[column].nunique() for column in ("advantage", "spread")) > 1
        enough = known["variant"].nunique() >= MIN_VARIANTS_FOR_CORRELATION
        found = stats.spearmanr(known["spread"], known["advantage"]).statistic if varied and enough else np.nan
        rows.append({"optimizer": label, "n_points": len(known), "correlation": float(found)})
    return pd.DataFrame(rows, columns=["optimizer", "n_points", "correlation"])


def bootstrap_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of `values`; (NaN, NaN) for fewer than 3, from which nothing is claimed.

    The percentile method: with a handful of seeds the bias-corrected ones are undefined as soon as values repeat. With
    so few it is rather too narrow than too wide, which is why the number of seeds stands beside every interval.
    """
    if len(values) < MIN_SEEDS_FOR_INTERVAL:
        return np.nan, np.nan
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    interval = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(BOOTSTRAP_SEED),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _column(runs: pd.DataFrame, split: str, metric: str) -> str:
    column = f"{split}_{metric}"
    if column not in runs:
        known = sorted(name.removeprefix("test_") for name in map(str, runs) if name.startswith("test_"))
        raise ValueError(f"The runs have no metric {metric!r} on the {split} split; they have: {', '.join(known)}.")
    return column
