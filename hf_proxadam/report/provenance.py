"""The card's account of itself: how to make the study again, what it can't say, what lies beside the card."""

from typing import Any

import pandas as pd

from hf_proxadam.report import sections, text
from hf_proxadam.report.data import Contents
from hf_proxadam.report.text import escape, plural
from hf_proxadam.study import statistics

_AXES = ("learning_rates", "weight_decays", "seeds", "loss_multipliers", "model_variants")
_TOLD = ("model", "training", *_AXES)
_LIVE = (
    "The optimizers that really ran at the chosen cells, with the weight decay that each parameter was under (the "
    "Trainer leaves biases and normalisation without) and the defaults that they were made with (the learning rate is "
    "the cell's; options that are off are left out here, and stand in `study.json`):"
)


def grid(study: dict[str, Any]) -> str:
    """The size of the grid: `2 learning rates, 2 weight decays and 3 seeds`."""
    counts = [(len(study[key]), key[:-1].replace("_", " ")) for key in _AXES if key in study]
    return text.enumerate_words([plural(count, noun) for count, noun in counts])


def reproducibility(contents: Contents) -> str:
    """Command, study, the optimizers that ran, versions and hardware, time."""
    study = contents.study["study"]
    seconds = contents.runs["train_seconds"]
    told = "; ".join(f"{key.replace('_', ' ')} {escape(sections.flat(study[key]))}" for key in _TOLD if key in study)
    live = [
        [escape(label), *_live_optimizer(contents.study["live_optimizers"].get(label) or {})]
        for label in contents.by_label.optimizers
    ]
    paragraphs = [
        *sections.command(contents.study.get("command", [])),
        f"The study, as in `study.json`: {told}.",
        _LIVE,
        text.table(["optimizer", "class", "weight decay", "defaults"], live, "llll"),
        *sections.versions(contents.study.get("environment", {})),
        f"Training took {text.duration(seconds.sum())} in all; the median run took {text.duration(seconds.median())}.",
    ]
    return "\n\n".join(paragraphs)


def _live_optimizer(live: dict[str, Any]) -> list[str]:
    name, defaults = sections.live_optimizer(live)
    decays = [
        f"{group['weight_decay']:g} for {plural(group['parameters'], 'parameter')}"
        for group in live.get("groups", [])
        if group["weight_decay"] is not None
    ]
    return [name, escape(", ".join(decays) or text.NONE), defaults]


def limits(contents: Contents, summary: pd.DataFrame) -> str:
    """What the study can't say, as a list.

    Args:
        contents: what the report is made from.
        summary: the table of `hf_proxadam.study.statistics.summarise`.
    """
    study = contents.study["study"]
    points = [
        f"{plural(len(study['seeds']), 'seed')}: {_about_seeds(len(study['seeds']))}",
        f"{_about_models(study)}, one data split: intervals cover the seeds, not other data or models.",
        "Several optimizers are compared with the baseline, and intervals are not corrected for their number.",
        f"Every optimizer was given the same {grid(study)}; other hyper-parameters were not tuned.",
    ]
    chosen = contents.by_label.chosen.to_dict("records")
    edges = [escape(row["optimizer"]) for row in chosen if _at_edge(row, study)]
    if edges:
        where = text.enumerate_words(edges)
        points.append(f"The chosen cell lies at the edge of the grid for {where}: better ones may lie outside.")
    diverged = int(summary["diverged"].sum())
    if diverged:
        runs = plural(diverged, "run")
        points.append(f"{runs} diverged; means are over the others, which flatters the cells concerned.")
    return "\n".join(f"- {point}" for point in points)


def _about_models(study: dict[str, Any]) -> str:
    variants = study.get("model_variants")
    return f"One task, {plural(len(variants), 'model variant')}" if variants else "One task, one model"


def _about_seeds(count: int) -> str:
    if count < statistics.MIN_SEEDS_FOR_INTERVAL:
        return "too few for an interval, so no difference is claimed."
    return (
        "a bootstrap interval from so few is rather too narrow than too wide."
        if count < 10
        else "intervals cover their spread alone."
    )


def _at_edge(row: dict[Any, Any], study: dict[str, Any]) -> bool:
    tried = {"learning_rate": study["learning_rates"], "weight_decay": study["weight_decays"]}
    return any(row[key] in (min(values), max(values)) for key, values in tried.items() if len(values) > 1)


def files(contents: Contents) -> str:
    """What lies beside the card."""
    rows = [
        ["`runs.parquet`, `runs.csv`", "every run of the grid: validation and test metrics, status, time"],
        ["`curves.parquet`", "every run's learning curve"],
        ["`scales.parquet`", "gradient, update and weight scales of the shown runs, per parameter and step"],
        ["`study.json`", "the study, the command, versions, the optimizers that ran"],
    ]
    if contents.scales is None:
        del rows[2]
    note = "Every number and figure above is computed from these files; `hash` is what their rows have in common."
    return f"{note}\n\n{text.table(['file', 'content'], rows, 'll')}"
