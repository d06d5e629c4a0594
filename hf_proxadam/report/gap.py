"""Whether optimizers are further ahead of Adam-l2 where its gradients' scales spread more, over a study's settings."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hf_proxadam.report import scales, style, text
from hf_proxadam.report.data import Contents
from hf_proxadam.report.metric import Metric
from hf_proxadam.report.text import escape, number, plural, shorten, visible
from hf_proxadam.study import statistics

_MARKERS = "osD^v<>"


def points(contents: Contents) -> pd.DataFrame:
    """How far each optimizer is ahead of the baseline, and how far the baseline's gradient scales spread, per setting.

    Returns:
        A row per optimizer but the baseline and setting of which both are known: `optimizer`, `setting` (its title),
        `variant`, `spread` (inter-quartile range of the modules' log2 rms, the median over steps, in octaves),
        `advantage` with its 95 % interval `low` to `high` (of the test metric; positive where the optimizer is better).
    """
    rows = []
    for title, part in contents.parts.items():
        modules = contents.by_label.modules.get(f"{part.baseline} ({title})" if title else str(part.baseline))
        if modules is None:
            continue
        summary = statistics.summarise(
            part.runs, part.chosen, part.metric, part.greater_is_better, part.baseline or ""
        ).dropna(subset=["difference"])
        sign = 1 if part.greater_is_better else -1
        for row in summary.to_dict("records"):
            bounds = sorted((sign * row["difference_low"], sign * row["difference_high"]))
            rows.append(
                {
                    "optimizer": row["optimizer"],
                    "setting": title,
                    "variant": part.runs["variant"].iloc[0],
                    "spread": scales.spread_between_modules(modules, "gradient"),
                    "advantage": sign * row["difference"],
                    "low": bounds[0],
                    "high": bounds[1],
                }
            )
    order = {label: i for i, label in enumerate(contents.optimizers)}
    columns = ["optimizer", "setting", "variant", "spread", "advantage", "low", "high"]
    found = pd.DataFrame(rows, columns=columns)
    return found.sort_values("optimizer", key=lambda labels: labels.map(order), kind="stable").reset_index(drop=True)


def section(contents: Contents) -> str:
    """The points and their rank correlation, in Markdown; empty where the study has a single setting."""
    if len(contents.parts) == 1:
        return ""
    found, metric = points(contents), Metric.of(contents)
    if found.empty:
        return "Nothing can be said: that takes a finished Adam-l2, and recorded scales of its gradients."
    rows = [
        [
            escape(row["setting"]),
            escape(row["optimizer"]),
            number(row["spread"], ".2f"),
            metric.difference(row["advantage"]),
            metric.interval(row["low"], row["high"], sign=True),
        ]
        for row in found.to_dict("records")
    ]
    base = escape(contents.baseline)
    header = ["setting", "optimizer", f"spread of {base}'s gradients", f"ahead of {base}", "its 95 % interval"]
    told = [
        f"{escape(row['optimizer'])} {number(row['correlation'], '.2f', sign=True)} "
        f"({plural(int(row['n_points']), 'point')})"
        for row in statistics.rank_correlation(found).dropna().to_dict("records")
    ]
    if told:
        claim = (
            f"Spearman's rank correlation between the two, over the study's settings: {text.enumerate_words(told)}. "
            "So few points order themselves by chance, too: with 3 a perfect order comes once in 3 times, with 5 once "
            "in 60."
        )
    else:
        claim = (
            "**No rank correlation is claimed**: it takes at least "
            f"{statistics.MIN_VARIANTS_FOR_CORRELATION} model variants with finished runs that differ in both."
        )
    explanation = (
        f"The spread is the inter-quartile range of log2 of the modules' root mean square gradients, in octaves, the "
        f"median over the recorded steps, in the run of the first seed at {base}'s chosen cell. A factor on the loss "
        "leaves it as it is."
    )
    return f"{text.table(header, rows, 'll')}\n\n{claim}\n\n{explanation}"


def gap_against_spread(contents: Contents) -> Figure | None:
    """How far each optimizer is ahead of the baseline against the spread of its gradients' scales, a point a setting.

    Bars are 95 % intervals of the difference, where there are seeds enough for one. None where there is but one setting
    or nothing is known.
    """
    found, metric = points(contents), Metric.of(contents)
    if len(contents.parts) == 1 or found.empty:
        return None
    figure = Figure(figsize=(style.WIDTH, 4.6))
    panel = figure.subplots()
    panel.axhline(0, color="black", linewidth=1)
    labels = list(found["optimizer"].unique())
    width = float(np.ptp(found["spread"])) or 1.0
    for i, label in enumerate(labels):
        own = found[found["optimizer"] == label]
        # Beside one another, for in one setting all optimizers have the same spread.
        beside = own["spread"] + 0.01 * width * (i - (len(labels) - 1) / 2)
        ahead, low, high = (own[column] * metric.factor for column in ("advantage", "low", "high"))
        panel.errorbar(
            beside,
            ahead,
            yerr=np.nan_to_num([ahead - low, high - ahead]),
            fmt=_MARKERS[i % len(_MARKERS)],
            color=style.colour(contents.optimizers.index(label)),
            capsize=3,
            label=shorten(visible(label), 40),
        )
    # Three rows of names, in turn: neighbours' spreads may lie close to one another.
    for i, (setting, spread) in enumerate(found.groupby("setting")["spread"].first().sort_values().items()):
        name = shorten(visible(setting), 30)
        panel.annotate(
            name,
            (spread, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4 + 12 * (i % 3)),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
        panel.axvline(spread, color="#E6E6E6", zorder=0)
    base = shorten(visible(contents.baseline), 30)
    panel.set_xlabel(f"spread of the scales of {base}'s gradients between modules (octaves)")
    panel.set_ylabel(f"ahead of {base}: test {visible(metric.name)}{' (points)' if metric.is_share else ''}")
    panel.margins(x=0.1)
    panel.spines[["top", "right"]].set_visible(False)
    title = "bars: 95 % intervals" if found["low"].notna().any() else None
    _, columns = style.grid(len(labels), 4)
    figure.legend(loc="outside lower center", ncols=columns, title=title, title_fontsize=9.5)
    return figure
