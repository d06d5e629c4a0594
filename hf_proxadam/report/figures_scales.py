"""Figures of the gradient scales: module x step, and distributions over coordinates. One function is one figure."""

import collections
import math

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hf_proxadam.report import scales, style
from hf_proxadam.report.text import number, shorten, visible
from hf_proxadam.scales.store import MIN_EXPONENT

_LABELLED_MODULES = 36
_LABEL_LENGTH = 34
_EPOCHS_SHOWN = 3
_LEAST_SHARE = 5e-4  # a single coordinate far out would leave no room for all the others


def module_scales(runs: dict[str, pd.DataFrame], quantity: str) -> Figure:
    """log2 of the root mean square per module (rows, in the model's order) and step (columns), a panel per optimizer.

    Args:
        runs: label of the optimizer to the records of one of its runs, per module.
        quantity: `gradient` or `update`.
    """
    tables = {label: scales.by_step(modules, quantity) for label, modules in runs.items()}
    return _heat_maps(tables, f"log2 of rms {quantity}", "exactly zero, or not finite")


def update_to_weight(runs: dict[str, pd.DataFrame]) -> Figure:
    """log2 of rms(update) / rms(weight) per module and step, a panel per optimizer.

    Args:
        runs: label of the optimizer to the records of one of its runs, per module.
    """
    tables = {label: scales.ratio_by_step(modules) for label, modules in runs.items()}
    return _heat_maps(tables, "log2 of rms update / rms weight", "update or weights exactly zero, or not finite")


def _heat_maps(tables: dict[str, pd.DataFrame], unit: str, missing: str) -> Figure:
    """Tables of modules x steps on one colour scale, a panel each; `missing` says what a NaN in them is."""
    modules = list(dict.fromkeys(module for table in tables.values() for module in table.index))
    rows, columns = style.grid(len(tables), 4)
    labels, every = style.thin(len(modules), _LABELLED_MODULES)
    height = min(max(0.17 * len(modules), 1.6), 0.17 * _LABELLED_MODULES)
    figure = Figure(figsize=(style.WIDTH, rows * (height + 0.45) + 0.75))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    values = np.concatenate([table.to_numpy().ravel() for table in tables.values()])
    values = values[np.isfinite(values)]
    low, high = style.bounds([math.floor(values.min()), math.ceil(values.max())]) if len(values) else (-1.0, 0.0)
    colours = ScalarMappable(Normalize(low, high), style.SEQUENTIAL)
    names = _short_names(modules)
    for i, panel in enumerate(panels.flat):
        if i >= len(tables):
            panel.set_axis_off()
            continue
        label, table = list(tables.items())[i]
        panel.set_title(style.fit(label, (style.WIDTH - 3.4) / columns))
        panel.set_facecolor(style.MISSING)
        image = np.ma.masked_invalid(table.reindex(modules).to_numpy())
        panel.imshow(image, aspect="auto", interpolation="nearest", cmap=colours.cmap, norm=colours.norm)
        steps = list(table.columns)
        ticks, _ = style.thin(len(steps), 5)
        panel.set_xticks(list(ticks), [str(steps[tick]) for tick in ticks])
        panel.set_yticks(list(labels), [names[tick] for tick in labels], fontsize=8)
        panel.tick_params(axis="y", length=2, labelleft=i % columns == 0)
        panel.tick_params(axis="x", length=2)
        panel.set_xlabel("step")
    ordinal = {1: "", 2: ", every 2nd named", 3: ", every 3rd named"}.get(every, f", every {every}th named")
    figure.supylabel(f"module (first layers at the top{ordinal})", fontsize=10)
    figure.colorbar(colours, ax=panels, label=unit, fraction=0.03, pad=0.02, aspect=25 * rows)
    if any(np.isnan(table.to_numpy()).any() for table in tables.values()):
        figure.legend(handles=[Patch(color=style.MISSING, label=missing)], loc="outside lower center")
    return figure


def update_histograms(runs: dict[str, pd.DataFrame]) -> Figure:
    """Distribution of log2 |update| over all coordinates, a row per optimizer and a column per epoch.

    Of many epochs the first, the last and some in between are shown. Coordinates that were not moved at all have no
    log2: they are a bar of their own at the left, and don't hide in the lowest bin.

    Args:
        runs: label of the optimizer to the records of one of its runs, per module.
    """
    by_epoch = {label: scales.by_epoch(modules) for label, modules in runs.items()}
    epochs = sorted({epoch for tables in by_epoch.values() for epoch in tables})
    shown = [epochs[i] for i in sorted({round(i) for i in np.linspace(0, len(epochs) - 1, _EPOCHS_SHOWN)})]
    shares = {
        (label, epoch): scales.distribution(tables[epoch], "update")
        for label, tables in by_epoch.items()
        for epoch in shown
        if epoch in tables
    }
    used = np.flatnonzero(np.max([counts for counts, _ in shares.values()], axis=0) >= _LEAST_SHARE)
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
    first, last = first + MIN_EXPONENT, last + MIN_EXPONENT
    width = max(1.0, (last - first) / (48 / math.sqrt(len(shown))))
    room = max(2.2 * width, 0.04 * len(shown) * (last - first + 1))  # on both sides of it, for its label
    zero_at = first - room - 1
    figure = Figure(figsize=(style.WIDTH, len(runs) * 1.7 + 0.8))
    panels = figure.subplots(len(runs), len(shown), squeeze=False, sharex=True, sharey=True)
    exponents = np.arange(first, last + 1)
    for row, label in zip(panels, runs, strict=True):
        row[0].set_ylabel(style.fit(label, 1.6, 10), fontsize=10)
        for panel, epoch in zip(row, shown, strict=True):
            if (label, epoch) not in shares:
                panel.text(0.5, 0.5, "no records", ha="center", va="center", transform=panel.transAxes, fontsize=9)
                continue
            counts, zero = shares[label, epoch]
            spread = number(scales.spread_over_coordinates(counts), ".1f")
            when = f"epoch {epoch}, " if len(epochs) > 1 else ""
            panel.set_title(f"{when}middle half: {spread} octaves", fontsize=9)
            heights = 100 * counts[exponents - MIN_EXPONENT]
            panel.bar(exponents + 0.5, heights, width=1.0, color=style.colour(0), edgecolor="white", linewidth=0.4)
            panel.bar(zero_at, 100 * zero, width=width, color="white", edgecolor=style.MARK, hatch="///")
            share = f"{number(100 * zero)} %"
            panel.text(zero_at, 100 * zero, share, ha="center", va="bottom", fontsize=8, color=style.MARK)
            panel.axvline(zero_at + room, color="#999999", linewidth=0.8, linestyle=":")
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_xlim(zero_at - room, last + 1.5)
            panel.margins(y=0.15)
            every = max(2, 2 * round((last - first) * len(shown) / 26))
            ticks = [tick for tick in range(first, last + 2) if tick % every == 0]
            panel.set_xticks([zero_at, *ticks], ["zero", *(number(tick, "d") for tick in ticks)])
    figure.supxlabel("log2 |update|", fontsize=10)
    figure.supylabel("share of all coordinates (%)", fontsize=10)
    return figure


def _short_names(modules: list[str]) -> list[str]:
    """Names without the path that most have in common, such as `vit.encoder`; too long ones lose their start."""
    paths = [visible(module).split(".") for module in modules]
    shared: list[str] = []
    while True:
        longer = collections.Counter(tuple(path[: len(shared) + 1]) for path in paths if len(path) > len(shared) + 1)
        prefix, count = longer.most_common(1)[0] if longer else ((), 0)
        # A bare number would name nothing: the word before it stays.
        if count < 2 / 3 * len(paths) or any(
            path[len(prefix)].isdecimal() for path in paths if (*path[: len(prefix)],) == prefix
        ):
            break
        shared = list(prefix)
    short = [".".join(path[len(shared) :] if path[: len(shared)] == shared else path) for path in paths]
    return [shorten(name or "(model)", _LABEL_LENGTH, separator=".") for name in short]
