"""The result card: Markdown with the Hub's metadata, made from the data beside it."""

import pandas as pd
from huggingface_hub import DatasetCardData

from hf_proxadam.report import gap, provenance, sections, text
from hf_proxadam.report.data import Contents
from hf_proxadam.report.metric import Metric
from hf_proxadam.report.text import escape
from hf_proxadam.report.verdict import verdict
from hf_proxadam.study import statistics

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))

_GAP = "gap_against_spread.png"
_ONE_SCALE = "One colour scale for all panels."
CAPTIONS = {
    "test_error.png": f"Test error, mean over seeds, for every learning rate and weight decay. {_ONE_SCALE}",
    "learning_curves.png": "Training loss and validation metric at each optimizer's chosen cell.",
    _GAP: "How far each optimizer is ahead of Adam-l2 on test data, against the spread of the scales of Adam-l2's "
    "gradients between modules, for every setting of the study.",
    "gradient_scales.png": f"Scale of the gradients per module and step at the chosen cells. {_ONE_SCALE}",
    "update_scales.png": "Scale of the updates (what was added to the weights, decay included) per module and step at "
    f"the chosen cells. {_ONE_SCALE}",
    "update_to_weight.png": "Scale of the updates in units of the scale of the weights that they move, per module and "
    f"step at the chosen cells. {_ONE_SCALE}",
    "update_histograms.png": "Magnitudes of the updates over all coordinates at the chosen cells, in the first and the "
    "last epoch and one between them. Coordinates that were not moved are the bar at the left; ends with less than "
    "0.05 % per bin are not drawn.",
}


def make_card(contents: Contents, figures: list[str]) -> str:
    """Write the card.

    Args:
        contents: what the report is made from.
        figures: file names in `figures/`, in the order in which they are shown.

    Returns:
        The text of README.md: the metadata between `---` lines, then the Markdown.
    """
    summaries = {
        title: statistics.summarise(part.runs, part.chosen, part.metric, part.greater_is_better, part.baseline or "")
        for title, part in contents.parts.items()
    }
    results = [name for name in figures if name in ("test_error.png", "learning_curves.png")]
    body = [
        f"# Optimizers compared: {escape(contents.study['study']['name'])}",
        _introduction(contents),
        _open_cells(contents),
        "## Results",
        *(
            paragraph
            for title, part in contents.parts.items()
            for paragraph in (
                f"### {escape(title)}" if title else "",
                _headline(part, summaries[title]),
                verdict(part, summaries[title]),
            )
        ),
        *(_figure(name) for name in results),
        *_gap(contents, figures),
        "## How the cells were chosen",
        _selection(contents.by_label),
        "## Scales of gradients and updates",
        _scales(contents.by_label),
        *(_figure(name) for name in figures if name not in (*results, _GAP)),
        "## Reproducibility",
        provenance.reproducibility(contents),
        "## Limits",
        provenance.limits(contents, pd.concat(summaries.values())),
        "## Files",
        provenance.files(contents),
    ]
    return sections.card(metadata(contents), body)


def metadata(contents: Contents) -> DatasetCardData:
    """The Hub's metadata: what its search finds and its viewer opens."""
    tables = {"runs": contents.runs, "curves": contents.curves, "scales": contents.scales}
    rows = {name: len(table) for name, table in tables.items() if table is not None}
    return DatasetCardData(
        pretty_name=f"Optimizers compared: {contents.study['study']['name']}",
        license="apache-2.0",
        language=["en"],
        tags=list(sections.TAGS),
        size_categories=[next((size for limit, size in _SIZES if sum(rows.values()) < limit), "n>1T")],
        configs=[
            {"config_name": name, "data_files": f"{name}.parquet", **({"default": True} if name == "runs" else {})}
            for name in rows
        ],
    )


def _introduction(contents: Contents) -> str:
    study = contents.study["study"]
    names = text.enumerate_words([escape(label) for label in contents.optimizers])
    recorded = (
        "The scales of the gradients were recorded beside the metrics, for the paper explains the one by the other."
        if contents.scales is not None
        else "The scales of the gradients, by which the paper explains it, were not recorded here."
    )
    return (
        f"{names} were compared on the task {escape(study['task'])}, over {provenance.grid(study)}. "
        f"The question is that of {sections.PAPER} "
        "(Zhuang, Liu, Cutkosky and Orabona, TMLR 2022): does decoupled or proximal weight decay, which leaves the "
        "updates independent of the gradients' scales, do better than an l2 term in the loss (Adam-l2), which does "
        f"not? {recorded}"
    )


def _open_cells(contents: Contents) -> str:
    done, whole = len(contents.runs), len(contents.study["cells"])
    return (
        "" if done == whole else f"**Not finished**: {done} of {whole} runs are in; all numbers below may still change."
    )


def _headline(contents: Contents, summary: pd.DataFrame) -> str:
    metric = Metric.of(contents)
    runs_at_chosen = dict(zip(contents.chosen["optimizer"], contents.chosen["n_seeds"], strict=True))
    compared = f"difference to {escape(contents.baseline)}" if contents.baseline else "difference"
    header = [
        "optimizer",
        "learning rate",
        "weight decay",
        metric.label(f"test {escape(metric.name)}"),
        "sd",
        "95 % interval",
        "seeds",
    ]
    header += [compared, "its 95 % interval", "diverged runs", "cells within a point"]
    rows = []
    for row in summary.to_dict("records"):
        attempted = int(runs_at_chosen[row["optimizer"]])
        rows.append(
            [
                escape(row["optimizer"]),
                f"{row['learning_rate']:g}",
                f"{row['weight_decay']:g}",
                metric.value(row["mean"]),
                metric.value(row["sd"]),
                metric.interval(row["low"], row["high"]),
                f"{row['n_seeds']}" if row["n_seeds"] == attempted else f"{row['n_seeds']} of {attempted}",
                metric.difference(row["difference"]),
                metric.interval(row["difference_low"], row["difference_high"], sign=True),
                f"{row['diverged']} of {row['grid_runs']}",
                f"{row['share_within_point'] * row['grid_cells']:.0f} of {row['grid_cells']}",
            ]
        )
    return text.table(header, rows, "l")


def _gap(contents: Contents, figures: list[str]) -> list[str]:
    told = gap.section(contents)
    if not told:
        return []
    title = f"## {escape(contents.baseline or 'The baseline')}'s gap and the spread of its gradients' scales"
    return [title, told, *(_figure(name) for name in figures if name == _GAP)]


def _selection(contents: Contents) -> str:
    metric, chosen = escape(contents.metric), contents.chosen
    validation = text.enumerate_words(
        [
            f"{escape(row['optimizer'])} {Metric.of(contents).value(row[f'validation_{contents.metric}'])}"
            for row in chosen.to_dict("records")
        ]
    )
    best = "highest" if contents.greater_is_better else "lowest"
    rule = (
        f"For each optimizer, the learning rate and weight decay with the {best} mean {metric} over the seeds on the "
        f"**validation** split were chosen ({validation}), and are reported on the **test** split, which played no "
        "part in the choice; a cell with diverged runs ranks behind all others. "
        "Runs with the same seed start from the same weights and see the data in the same order, so differences are "
        "taken seed by seed. Intervals are bootstrap 95 % intervals of the mean over seeds (percentile method); with "
        f"fewer than {statistics.MIN_SEEDS_FOR_INTERVAL} seeds none is claimed."
    )
    near = "“Cells within a point” are those whose mean validation metric is at most 0.01 behind the optimizer's best."
    clipping = (
        "Gradients were not clipped (`max_grad_norm` 0): clipping by the norm makes every update depend on the scale "
        "of all gradients, which is what the comparison is about."
    )
    return "\n\n".join([rule, f"{near} {clipping}"])


def _scales(contents: Contents) -> str:
    if contents.scales is None:
        return "None were recorded in this study."
    seeds = contents.runs.set_index("hash")["seed"]
    shown = {contents.label_of[cell_hash]: cell_hash for cell_hash in contents.scales["hash"].unique().to_pylist()}
    rows = [
        [escape(label), f"{seeds[shown[label]]}", *sections.scales_row(modules)]
        for label, modules in contents.modules.items()
    ]
    table = text.table(["optimizer", "seed", *sections.SCALES_HEADER], rows, "l")
    return (
        f"{table}\n\n{sections.SCALES_EXPLAINED} One run per optimizer is shown, that of the first seed at its chosen "
        "cell."
    )


def _figure(name: str) -> str:
    return sections.figure(name, CAPTIONS[name])
