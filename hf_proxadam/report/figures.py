"""Figures of the results: test error over the grid, learning curves. One function is one figure."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hf_proxadam.report import style
from hf_proxadam.report.data import Contents
from hf_proxadam.report.metric import Metric
from hf_proxadam.report.text import plural, shorten, visible
from hf_proxadam.study.statistics import CELL

_DIVERGED = "✕"


def heat_maps(contents: Contents) -> Figure:
    """Test error over learning rate x weight decay, a panel per optimizer, on one shared colour scale.

    Every cell carries its mean over the seeds that did not diverge. Where runs diverged they are counted in the
    cell; one in which all did is hatched, one that is not finished yet is empty. The chosen cell is outlined.
    """
    metric = Metric.of(contents)
    runs, chosen = contents.runs, contents.chosen
    cells = (
        runs.assign(_error=metric.loss(runs[f"test_{metric.name}"]), _diverged=runs["status"].eq("diverged"))
        .groupby(CELL, sort=False)
        .agg(error=("_error", "mean"), diverged=("_diverged", "sum"), runs=("seed", "size"))
    )
    rates, decays = (sorted(runs[column].unique()) for column in ("learning_rate", "weight_decay"))
    width = 0.72 * len(rates) + 0.5
    rows, columns = style.grid(len(contents.optimizers), int((style.WIDTH - 1.6) // width))
    figure = Figure(
        figsize=(max(7.0, min(style.WIDTH, columns * width + 1.6)), rows * (0.55 * len(decays) + 0.75) + 0.9)
    )
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colours, scale_label = _error_scale(cells["error"].dropna())
    marks = set()
    for i, panel in enumerate(panels.flat):
        if i >= len(contents.optimizers):
            panel.set_axis_off()
            continue
        label = contents.optimizers[i]
        panel.set_title(style.fit(label, (figure.get_size_inches()[0] - 1.6) / columns))
        for y, decay in enumerate(decays):
            for x, rate in enumerate(rates):
                marks.add(_heat_cell(panel, x, y, cells, (label, rate, decay), colours, metric))
        for best in chosen[chosen["optimizer"] == label].to_dict("records"):
            x, y = rates.index(best["learning_rate"]), decays.index(best["weight_decay"])
            for ink, weight in (("white", 4.5), ("black", 2)):
                panel.add_patch(
                    Rectangle((x - 0.43, y - 0.41), 0.86, 0.82, fill=False, edgecolor=ink, linewidth=weight)
                )
        panel.set(xlim=(-0.5, len(rates) - 0.5), ylim=(-0.5, len(decays) - 0.5))
        panel.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        panel.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        is_lowest, is_leftmost = i + columns >= len(contents.optimizers), i % columns == 0
        panel.tick_params(length=0, labelbottom=is_lowest, labelleft=is_leftmost)
        panel.set(xlabel="learning rate" if is_lowest else "", ylabel="weight decay" if is_leftmost else "")
    bar = figure.colorbar(
        colours, ax=panels, label=metric.loss_label + scale_label, fraction=0.03, pad=0.02, aspect=18 * rows
    )
    if scale_label:
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    keys: list[Any] = [Patch(fill=False, edgecolor="black", linewidth=2, label="chosen on validation data")]
    if "diverged" in marks:
        keys.append(Patch(facecolor=style.MISSING, hatch="xxx", edgecolor=style.MARK, label="all runs diverged"))
    if "some" in marks:
        keys.append(
            Line2D(
                [], [], linestyle="", marker="x", color="black", label="k/n: k of n runs diverged, mean of the others"
            )
        )
    if "open" in marks:
        keys.append(Patch(facecolor="white", edgecolor=style.MISSING, label="not finished"))
    letters = sum(len(str(key.get_label())) + 9 for key in keys)
    figure.legend(
        handles=keys,
        loc="outside lower center",
        ncols=style.grid(len(keys), style.columns(figure, letters, len(keys)))[1],
    )
    return figure


def _error_scale(errors: pd.Series) -> tuple[ScalarMappable, str]:
    """One colour scale for all errors, logarithmic where a few large ones would leave the others all one colour."""
    low, high = style.bounds(errors.tolist())
    if low > 0 and high > 4 * low:
        return ScalarMappable(LogNorm(low, high), style.SEQUENTIAL), ", log scale"
    return ScalarMappable(Normalize(low, high), style.SEQUENTIAL), ""


def _heat_cell(
    panel: Axes,
    x: int,
    y: int,
    cells: pd.DataFrame,
    key: tuple[Any, ...],
    colours: ScalarMappable,
    metric: Metric,
) -> str:
    """Draw one cell; returns which mark it carries: `plain`, `some`, `diverged` or `open`."""
    corner = (x - 0.5, y - 0.5)
    if key not in cells.index:
        panel.add_patch(Rectangle(corner, 1, 1, facecolor="white", edgecolor=style.MISSING))
        return "open"
    cell = cells.loc[key]
    if cell["diverged"] == cell["runs"]:
        panel.add_patch(Rectangle(corner, 1, 1, facecolor=style.MISSING, hatch="xxx", edgecolor=style.MARK))
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        panel.text(x, y, f"{_DIVERGED} {cell['runs']:.0f}/{cell['runs']:.0f}", ha="center", va="center", bbox=box)
        return "diverged"
    face = colours.to_rgba(cell["error"])
    panel.add_patch(Rectangle(corner, 1, 1, facecolor=face, edgecolor="white"))
    # Relative luminance by Rec. 709: which of black and white stands out.
    ink = "black" if np.dot(face[:3], (0.2126, 0.7152, 0.0722)) > 0.45 else "white"
    lines = [metric.number(cell["error"])]
    if cell["diverged"]:
        lines.append(f"{_DIVERGED} {cell['diverged']:.0f}/{cell['runs']:.0f}")
    panel.text(x, y, "\n".join(lines), ha="center", va="center", color=ink, linespacing=1.1)
    return "some" if cell["diverged"] else "plain"


def learning_curves(contents: Contents) -> Figure:
    """Training loss and validation metric against the step at the chosen cells: mean and range over seeds.

    A row of panels for every setting of the study.
    """
    figure = Figure(figsize=(style.WIDTH, 0.6 + 3.6 * len(contents.parts)))
    rows = figure.subplots(len(contents.parts), 2, squeeze=False)
    seeds = pd.concat([_seeds(part) for part in contents.parts.values()])
    for i, (title, part) in enumerate(contents.parts.items()):
        _curves(part, rows[i][0], rows[i][1], {label: j for j, label in enumerate(contents.optimizers)}, seeds)
        for panel in rows[i]:
            panel.set_title(style.fit(title, style.WIDTH / 2.5) if title else "")
    # The same colours and names in all rows: every optimizer is named once.
    named = {label: handle for row in rows for handle, label in zip(*row[0].get_legend_handles_labels(), strict=True)}
    letters = max((len(label) + 9 for label in named), default=1) * len(named)
    _, columns = style.grid(len(named), style.columns(figure, letters, len(named)))
    over = plural(seeds.max(), "seed") if seeds.nunique() == 1 else "seeds"
    lines = f"line: mean over {over}; band: their range" if seeds.max() > 1 else None
    figure.legend(
        list(named.values()),
        list(named),
        loc="outside lower center",
        ncols=columns,
        handlelength=3,
        title=lines,
        title_fontsize=9.5,
    )
    return figure


def _seeds(contents: Contents) -> "pd.Series[int]":
    """How many runs there are at each optimizer's chosen cell."""
    runs = contents.runs.merge(contents.chosen[CELL], on=CELL)
    return runs.groupby("optimizer")["hash"].nunique()


def _curves(
    contents: Contents, loss_panel: Axes, metric_panel: Axes, index: dict[str, int], all_seeds: "pd.Series[int]"
) -> None:
    """Draw the curves of one setting; `index` gives the optimizers their colours."""
    metric = Metric.of(contents)
    runs = contents.runs.merge(contents.chosen[CELL], on=CELL)[["hash", "optimizer"]]
    curves, seeds = contents.curves.merge(runs, on="hash"), _seeds(contents)
    for label in contents.optimizers:
        own = curves[curves["optimizer"] == label]
        name = shorten(visible(label), 40) + (f" ({plural(seeds[label], 'seed')})" if all_seeds.nunique() > 1 else "")
        _mean_and_range(loss_panel, own, "train_loss", 1.0, name, index[label])
        _mean_and_range(metric_panel, own, f"validation_{metric.name}", metric.factor, name, index[label], marker="o")
    loss_panel.set(xlabel="step", ylabel="training loss")
    metric_panel.set(xlabel="step", ylabel=metric.label(f"validation {visible(metric.name)}"))
    losses = curves["train_loss"].dropna() if "train_loss" in curves else pd.Series(dtype=float)
    if len(losses) and losses.min() > 0 and losses.max() > 20 * losses.min():
        loss_panel.set_yscale("log")
        loss_panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        loss_panel.yaxis.set_minor_formatter(NullFormatter())
        loss_panel.set_ylabel("training loss (log scale)")
    for panel in (loss_panel, metric_panel):
        panel.grid(color="#E6E6E6")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)


def _mean_and_range(
    panel: Axes, curves: pd.DataFrame, column: str, factor: float, name: str, index: int, marker: str = ""
) -> None:
    if column not in curves:
        return
    by_step = (curves.dropna(subset=[column]).groupby("step")[column].agg(["mean", "min", "max"])) * factor
    steps = by_step.index.to_numpy()
    panel.fill_between(steps, by_step["min"], by_step["max"], color=style.colour(index), alpha=0.15, linewidth=0)
    panel.plot(steps, by_step["mean"], label=name, marker=marker, markersize=3.5, **style.line(index))
