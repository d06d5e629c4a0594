"""The card of one fine-tuned model: Markdown with the Hub's metadata, made from the files beside it."""

import math
import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_proxadam.report import sections, text
from hf_proxadam.report.model_data import ModelContents, is_finite
from hf_proxadam.report.text import escape, number

# The Hub's names, where they are others than those of the tasks.
HUB_METRICS = {"pearson": "pearsonr"}
HUB_NAME = re.compile(r"^(?:[\w.-]{1,96}/)?[\w.-]{1,96}$", re.ASCII)
# Prefix in the results to the split's name; MNLI has a second set to validate on, of other genres.
_SPLITS = {"eval": "validation", "test": "test", "eval_mismatched": "mismatched", "test_mismatched": "mismatched"}
_LOGGED_ROWS = 12
_CAPTIONS = {
    "gradient_scales.png": "Scale of the gradients per module and step.",
    "update_scales.png": "Scale of the updates (what was added to the weights, decay included) per module and step.",
    "update_to_weight.png": "Scale of the updates in units of the scale of the weights that they move, per module and "
    "step.",
    "update_histograms.png": "Magnitudes of the updates over all coordinates, in the first and the last epoch and one "
    "between them. Coordinates that were not moved are the bar at the left; ends with less than 0.05 % per bin are not "
    "drawn.",
}
_LIVE = (
    "The optimizer that really ran, with the defaults of its parameter groups (options that are off are left out here, "
    "and stand in `run.json`):"
)
_RULES = {
    "hf_proxadam.optim.proxadam.ProxAdam": "proximal weight decay, the step that AdamW approximates",
    "hf_proxadam.optim.adamw.ScaleFreeAdamW": "decoupled weight decay and scale-free steps",
    "hf_proxadam.optim.adam_l2.AdamL2": "weight decay coupled into the gradient",
}


def make_card(contents: ModelContents, figures: list[str]) -> str:
    """Write the card.

    Args:
        contents: what the training left.
        figures: file names in `figures/`, in the order in which they are shown.

    Returns:
        The text of README.md: the metadata between `---` lines, then the Markdown.
    """
    run = contents.run
    body = [
        f"# {escape(_title(contents))}",
        _introduction(contents),
        "## Results",
        _results(contents),
        "## Training",
        f"The arguments, as in `run.json`: {escape(sections.flat(run['training']))}.",
        _LIVE,
        text.table(["class", "learning rate", "weight decay", "defaults"], [_optimizer(run)], "lrrl"),
        *_log(contents),
        "## Scales of gradients and updates",
        *_scales(contents),
        *(sections.figure(name, _CAPTIONS[name]) for name in figures),
        "## Reproducibility",
        *sections.command(run["command"]),
        *sections.versions(run["environment"]),
        *_time(contents),
        "## Limits",
        _limits(contents),
        "## Files",
        _files(contents),
    ]
    return sections.card(metadata(contents), body)


def metadata(contents: ModelContents) -> ModelCardData:
    """The Hub's metadata: what its search finds, the model tree and the results in `model-index`."""
    task, base, dataset = contents.run["task"], contents.run["base_model"], contents.run["task"]["dataset"]
    from_hub = dataset.get("id") and not dataset.get("local")
    return ModelCardData(
        license=base.get("license") or "unknown",
        library_name="transformers",
        pipeline_tag=task["pipeline_tag"],
        base_model=base["id"] if base.get("id") and HUB_NAME.match(base["id"]) else None,
        datasets=[dataset["id"]] if from_hub else None,
        metrics=[HUB_METRICS.get(name, name) for name in task["metrics"]],
        tags=list(sections.TAGS),
        model_name=_title(contents),
        eval_results=_eval_results(contents) or None,
    )


def _title(contents: ModelContents) -> str:
    run = contents.run
    base = run["base_model"].get("id") or run["base_model"]["name"]
    trained = "trained" if run["base_model"].get("from_scratch") else "fine-tuned"
    return f"{base} {trained} on {run['task']['dataset']['name']} with {contents.optimizer}"


def _eval_results(contents: ModelContents) -> list[EvalResult]:
    """The task's own metrics on the split that is reported; the loss and the split of choosing stay in the tables."""
    task, dataset = contents.run["task"], contents.run["task"]["dataset"]
    reported = "test" if contents.scores("test") else "eval"
    return [
        EvalResult(
            task_type=task["pipeline_tag"],
            dataset_type=dataset.get("id") or dataset["name"],
            dataset_name=dataset["name"] + (", read from a local folder" if dataset.get("local") else ""),
            dataset_config=dataset.get("config"),
            dataset_split=_split(contents, split)["of"],
            dataset_revision=dataset.get("revision"),
            metric_type=HUB_METRICS.get(name, name),
            metric_value=value,
        )
        for split in (reported, f"{reported}_mismatched")
        for name, value in contents.scores(split).items()
        if name in task["metrics"] and math.isfinite(value)
    ]


def _split(contents: ModelContents, split: str) -> dict[str, Any]:
    """What a split of the results is made of: `of`, a split of the dataset, and the number of `examples`."""
    found: dict[str, Any] = contents.run["task"]["splits"].get(_SPLITS[split], {})
    return {"of": found.get("of", _SPLITS[split]), "examples": found.get("examples")}


def _introduction(contents: ModelContents) -> str:
    run = contents.run
    dataset, base = run["task"]["dataset"], run["base_model"]
    state = dataset.get("revision") or dataset.get("sha256")
    kind = "revision" if dataset.get("revision") else "sha256 of the files"
    source = "read from a local folder" if dataset.get("local") else "read from the Hub"
    origin = f", {escape(base['revision'])}" if base.get("revision") else ""
    trained = "trained from random weights" if base.get("from_scratch") else "fine-tuned"
    rule = _RULES.get(run["optimizer"].get("class", ""))
    return (
        f"{escape(base.get('id') or base['name'])}{origin} was {trained} on {escape(dataset['name'])} ({source}"
        f"{f', {kind} {escape(state)}' if state else ''}) with the optimizer {escape(contents.optimizer)}"
        f"{f': {rule}' if rule else ''}. The optimizers are those of {sections.PAPER} (Zhuang, Liu, Cutkosky and "
        "Orabona, TMLR 2022). Every number below is computed from the files beside this card."
    )


def _results(contents: ModelContents) -> str:
    rows = []
    for split, name in _SPLITS.items():
        made_of = _split(contents, split)
        for metric, value in contents.scores(split).items():
            examples = text.NONE if made_of["examples"] is None else f"{made_of['examples']}"
            rows.append([name, escape(made_of["of"]), escape(metric), number(value, ".4f"), examples])
    if not rows:
        return "The model has not been evaluated."
    return text.table(["split", "of the dataset's", "metric", "value", "examples"], rows, "lll")


def _optimizer(run: dict[str, Any]) -> list[str]:
    # Not the defaults' learning rate and weight decay: the Trainer gives its own to every group.
    name, defaults = sections.live_optimizer(run["optimizer"])
    values = [run["training"].get(key) for key in ("learning_rate", "weight_decay")]
    return [name, *(f"{value:g}" if is_finite(value) else text.NONE for value in values), defaults]


def _log(contents: ModelContents) -> list[str]:
    """The training's log, thinned out to a table that is read in one glance."""
    columns = {"loss": "training loss", "eval_loss": "validation loss"}
    columns |= {f"eval_{name}": f"validation {escape(name)}" for name in contents.run["task"]["metrics"]}
    steps: dict[int, dict[str, Any]] = {}
    for entry in contents.history:
        if is_finite(entry.get("step")) and any(is_finite(entry.get(name)) for name in columns):
            steps.setdefault(int(entry["step"]), {}).update(entry)
    if len(steps) < 2:
        return []
    kept = sorted(steps)
    # The first, the last, and between them evenly.
    shown = sorted({kept[round(i * (len(kept) - 1) / (_LOGGED_ROWS - 1))] for i in range(_LOGGED_ROWS)})
    used = {key: label for key, label in columns.items() if any(is_finite(steps[step].get(key)) for step in shown)}
    rows = [[f"{step}", *(_logged(steps[step].get(key)) for key in used)] for step in shown]
    return [
        f"From the log ({len(shown)} of {text.plural(len(kept), 'logged step')}):",
        text.table(["step", *used.values()], rows),
    ]


def _logged(value: Any) -> str:
    return number(value, ".4f") if is_finite(value) else text.NONE


def _scales(contents: ModelContents) -> list[str]:
    if not contents.modules:
        return ["None were recorded in this run."]
    rows = [[escape(name), *sections.scales_row(modules)] for name, modules in contents.modules.items()]
    return [text.table(["optimizer", *sections.SCALES_HEADER], rows, "l"), sections.SCALES_EXPLAINED]


def _time(contents: ModelContents) -> list[str]:
    seconds, rate = (contents.results.get(f"train_{name}") for name in ("runtime", "samples_per_second"))
    if seconds is None or not math.isfinite(seconds):
        return []
    speed = f", at {number(rate, '.1f')} examples per second" if rate is not None else ""
    return [f"Training took {text.duration(seconds)}{speed}."]


def _limits(contents: ModelContents) -> str:
    training, dataset = contents.run["training"], contents.run["task"]["dataset"]
    seed = escape(sections.flat(training.get("seed")))
    points = [f"One run, with the seed {seed}: other seeds give other numbers, and no other optimizer was tried here."]
    clip = training.get("max_grad_norm")
    if is_finite(clip) and clip > 0:
        points.append(f"Gradients were clipped at norm {clip:g}, which makes every update depend on their scale.")
    multiplier = contents.run.get("script", {}).get("loss_multiplier", 1)
    if is_finite(multiplier) and multiplier != 1:
        points.append(f"The loss was multiplied by {multiplier:g} before the backward pass; reported losses are not.")
    if contents.scores("test"):
        points.append("Hyper-parameters may have been chosen on the validation split; the test split is for reporting.")
    else:
        points.append("There is no test split: if hyper-parameters were chosen on the validation split, it flatters.")
    if dataset.get("local"):
        points.append("The data came from a local folder; that it is the dataset it is named after was not checked.")
    if not contents.run["base_model"].get("license"):
        points.append("The licence is not known: none was given, and none was found on the base model's card.")
    return "\n".join(f"- {point}" for point in points)


def _files(contents: ModelContents) -> str:
    rows = [
        ["`model.safetensors`, `config.json`", "the model; beside them the files of its tokenizer or image processor"],
        ["`all_results.json`", "the metrics of every split, time and speed"],
        ["`trainer_state.json`", "the log of the training"],
        ["`run.json`", "the command, versions, the task and its data, the optimizer that ran"],
        ["`scales/*.parquet`", "gradient, update and weight scales per parameter and step"],
    ]
    return text.table(["file", "content"], rows if contents.scales is not None else rows[:-1], "ll")
