"""What the data bear out, in sentences that are computed from the intervals and from nothing else."""

import math
from typing import Any

import pandas as pd

from hf_proxadam.report.data import Contents
from hf_proxadam.report.metric import Metric
from hf_proxadam.report.text import enumerate_words, escape, plural
from hf_proxadam.study.statistics import MIN_SEEDS_FOR_INTERVAL

PAPER = (
    "the paper's finding that decoupled and proximal weight decay beat Adam-l2 (which it made for residual networks "
    "without batch normalisation; with it, it found them level)"
)

_NO_CLAIM = "**No difference** to {} **can be claimed**"
_FIRM = 6  # so many paired differences all fall on one side by chance alone less than once in 20 times


def verdict(contents: Contents, summary: pd.DataFrame) -> str:
    """Say which differences to the baseline can be claimed, and what that means for the paper's claim.

    A difference is claimed where its 95 % interval leaves out zero, and not without an interval.

    Args:
        contents: what the report is made from.
        summary: the table of `hf_proxadam.study.statistics.summarise`.

    Returns:
        Markdown, one paragraph.
    """
    metric = Metric.of(contents)
    baseline = contents.baseline
    if baseline is None:
        return "**No difference can be claimed**: the study has no Adam-l2 to compare with."
    rows = [row for _, row in summary.iterrows() if row["optimizer"] != baseline]
    if not rows:
        return (
            "**No difference can be claimed**: there is no other optimizer with finished runs to compare Adam-l2 with."
        )
    told: dict[str, list[str]] = {}
    for row in rows:
        told.setdefault(_side(row, metric), []).append(_told(row, metric))
    fewest = min((int(row["n_pairs"]) for row in rows if _side(row, metric) in ("better", "worse")), default=0)
    is_weak = 0 < fewest < _FIRM
    base = escape(baseline)
    sentences = []
    for side in ("better", "worse"):
        if side in told:
            claim = f"possibly {side} than {base}" if is_weak else f"{side} than {base}"
            verb = "is" if len(told[side]) == 1 else "are"
            sentences.append(f"**{claim[0].upper()}{claim[1:]}** {verb} {enumerate_words(told[side])}.")
    if "level" in told:
        intervals = "the interval includes" if len(told["level"]) == 1 else "the intervals include"
        sentences.append(f"{_NO_CLAIM.format(base)} for {enumerate_words(told['level'])}: {intervals} zero.")
    if "open" in told:
        sentences.append(
            f"{_NO_CLAIM.format(base)} for {enumerate_words(told['open'])}: that would take at least "
            f"{MIN_SEEDS_FOR_INTERVAL} seeds that both have finished, and with fewer no interval is claimed."
        )
    if is_weak:
        sentences.append(
            f"The evidence is weak: {plural(fewest, 'paired difference')} all fall on one side by chance alone once "
            f"in {2 ** (fewest - 1)} times, and an interval from them then leaves out zero."
        )
    sentences.append(_paper(set(told)))
    return " ".join(sentences)


def _side(row: "pd.Series[Any]", metric: Metric) -> str:
    low, high = row["difference_low"], row["difference_high"]
    if math.isnan(low) or math.isnan(high):
        return "open"
    if low <= 0 <= high:
        return "level"
    return "better" if (low > 0) == metric.greater_is_better else "worse"


def _told(row: "pd.Series[Any]", metric: Metric) -> str:
    name = escape(row["optimizer"])
    if not row["n_pairs"]:
        return f"{name} (no seed in common)"
    measured = f"{name} ({metric.difference(row['difference'])}{metric.unit}"
    if not math.isnan(row["difference_low"]):
        measured += f", 95 % interval {metric.interval(row['difference_low'], row['difference_high'], sign=True)}"
    return f"{measured}, {plural(int(row['n_pairs']), 'seed')})"


def _paper(sides: set[str]) -> str:
    if sides == {"better"}:
        return f"This agrees with {PAPER}."
    if "better" in sides:
        return f"This agrees only in part with {PAPER}."
    if "worse" in sides:
        return f"This goes against {PAPER}."
    return f"So this study neither supports nor contradicts {PAPER}."
