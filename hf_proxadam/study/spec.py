"""What a study file may say: frozen dataclasses, checked as a whole before anything runs."""

import dataclasses
import pathlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from hf_proxadam.study.optimizers import check_optimizer, known_optimizers
from hf_proxadam.study.parsing import Path, Problems, convert, one_of, parse, parse_fields, read_yaml
from hf_proxadam.tasks import TASKS, task_class
from hf_proxadam.tasks.base import Task

SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """One optimizer of the comparison.

    Args:
        name: what `TrainingArguments(optim=...)` takes.
        optim_args: what `TrainingArguments(optim_args=...)` takes: `"key=value,key=value"`.
        label: how it is called in tables and figures; unique in the study. Default: its name.
    """

    name: str
    optim_args: str | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How every cell is trained; the names and meanings are those of `transformers.TrainingArguments`.

    Gradients are never clipped in a comparison (`max_grad_norm` 0): clipping by the norm makes every update depend on
    the scale of all gradients, which is what a comparison of scale-free optimizers is about.

    Args:
        num_train_epochs: passes over the training data.
        max_steps: if positive, the number of optimizer steps instead.
        per_device_train_batch_size: examples per step.
        per_device_eval_batch_size: examples per evaluation batch.
        gradient_accumulation_steps: batches per optimizer step.
        lr_scheduler_type: shape of the learning rate over the run.
        warmup_steps: steps of linear warm-up, or, below 1, their share of all steps.
        adam_beta1: decay rate of the first moment, in [0, 1).
        adam_beta2: decay rate of the second moment, in [0, 1).
        adam_epsilon: the eps of those optimizers that have one from here.
        logging_steps: training loss is averaged over so many steps; below 1, their share of all steps.
        eval_steps: the validation split is evaluated every so many steps; below 1, their share of all steps.
        bf16: compute in bfloat16 mixed precision; parameters, moments and updates stay float32.
        threads: CPU threads per worker. A part of the spec, for the number of threads decides the order of sums.
        use_cpu: train on the CPU even where there is a GPU.
        processes_per_cell: processes (and GPUs, where there are any) that train a cell together, each on batches of
            `per_device_train_batch_size`: a step then sees so many times more examples. The Trainer then fills up the
            last batch of an evaluation, so that losses of validation and test are exact to about a hundredth only;
            metrics are exact.
    """

    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 256
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    logging_steps: float = 10.0
    eval_steps: float = 0.1
    bf16: bool = False
    threads: int = 1
    use_cpu: bool = False
    processes_per_cell: int = 1

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {getattr(self, name)}; it must be at least 1."
            for name in (
                "per_device_train_batch_size",
                "per_device_eval_batch_size",
                "gradient_accumulation_steps",
                "threads",
                "processes_per_cell",
            )
            if getattr(self, name) < 1
        ]
        if self.num_train_epochs <= 0:
            wrong.append(f"num_train_epochs is {self.num_train_epochs}; it must be positive.")
        if self.max_steps == 0 or self.max_steps < -1:
            wrong.append(f"max_steps is {self.max_steps}; it must be positive, or -1 to go by num_train_epochs.")
        for name in ("logging_steps", "eval_steps"):
            value = getattr(self, name)
            if not (0 < value < 1 or (value >= 1 and value.is_integer())):
                wrong.append(f"{name} is {value}; it must be a whole number from 1 or a share in (0, 1).")
        if not (0 <= self.warmup_steps < 1 or (self.warmup_steps >= 1 and self.warmup_steps.is_integer())):
            wrong.append(f"warmup_steps is {self.warmup_steps}; it must be a whole number or a share in [0, 1).")
        wrong += [
            f"{name} is {getattr(self, name)}; it must be in [0, 1)."
            for name in ("adam_beta1", "adam_beta2")
            if not 0 <= getattr(self, name) < 1
        ]
        if self.adam_epsilon < 0:
            wrong.append(f"adam_epsilon is {self.adam_epsilon}; it must not be negative.")
        if self.lr_scheduler_type not in SCHEDULERS:
            wrong.append(
                f"lr_scheduler_type is {self.lr_scheduler_type!r}; {one_of(self.lr_scheduler_type, SCHEDULERS)}"
            )
        if wrong:
            raise ValueError(" ".join(wrong))

    def as_dict(self) -> dict[str, Any]:
        """All fields; those that came later are left out where they have their defaults, which was always so before."""
        spec = dataclasses.asdict(self)
        for name in ("processes_per_cell", "bf16"):
            if spec[name] == getattr(Training, name):
                del spec[name]
        return spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison: every optimizer x learning rate x weight decay x seed on one task.

    Where there are several loss multipliers or model variants, that whole grid is run for each of them, and each has a
    table of its own in the card.

    Args:
        name: what the study is called in its card.
        task: a name from `hf_proxadam.tasks.TASKS`.
        model: the task's own options (the fields of its class).
        optimizers: what is compared; the first one that is an Adam-l2 is the baseline.
        learning_rates: peak learning rates, positive.
        weight_decays: strengths of the regulariser, not negative.
        seeds: seeds of the weights and of the data's order; the same ones for every optimizer, so that runs pair up.
        loss_multipliers: what the loss is multiplied by before the backward pass; a scale-free optimizer doesn't care.
        model_variants: label to those options of `model` that are others in this variant, such as its depth; without
            any, `model` is the only one.
        training: how every cell is trained.
        selection_metric: the cell is chosen by this metric on the validation split.
        greater_is_better: whether its largest value is the best.
        record_scales_every: gradient scales are recorded every so many steps; 0 for never.
        retries: a cell that fails (not: diverges) is tried so many times more.
    """

    name: str
    task: str
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizers: tuple[OptimizerSpec, ...]
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    seeds: tuple[int, ...]
    loss_multipliers: tuple[float, ...] = (1.0,)
    model_variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    training: Training = dataclasses.field(default_factory=Training)
    selection_metric: str = "accuracy"
    greater_is_better: bool = True
    record_scales_every: int = 10
    retries: int = 2

    def as_dict(self) -> dict[str, Any]:
        """The whole spec as JSON's types, with what is always so in a comparison.

        What came later and was not made use of is left out: a study that was finished before it came is still the same.
        """
        spec = {**dataclasses.asdict(self), "max_grad_norm": 0.0}
        # A list, for their order counts, and a mapping's keys are sorted in the file.
        spec["model_variants"] = [{"label": label, **model} for label, model in self.model_variants.items()]
        if not self.model_variants:
            del spec["model_variants"]
        if self.loss_multipliers == (1.0,):
            del spec["loss_multipliers"]
        spec["training"] = self.training.as_dict()
        return spec


def load_study_file(path: str | pathlib.Path, options: Mapping[str, Mapping[str, Any]] | None = None) -> Study:
    """Read and check a study file.

    Args:
        path: the file.
        options: entries that are added to the file's `model` or `training`, or stand in the place of its own; None
            takes one of its own away.

    Returns:
        The study, with all options of the task filled in.

    Raises:
        ValueError: the file can't be read, or says something wrong: all its mistakes, each with its line.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"The study file {path} can't be read: {reason}.") from error
    data, lines = read_yaml(text, str(path))
    problems = Problems(str(path), lines)
    for part, entries in (options or {}).items():
        if entries and isinstance(data, dict) and isinstance(data.setdefault(part, {}), dict):
            data[part] = {key: value for key, value in (data[part] | entries).items() if value is not None}
    study = parse_study(data, problems)
    problems.raise_if_any()
    assert study is not None
    return study


def parse_study(data: Any, problems: Problems) -> Study | None:
    """Make a study of a mapping and check it as a whole; mistakes go to `problems`, and then there may be no study.

    Every field is checked as far as it can be, whatever is wrong with the others: one look should tell everything.
    """
    values = parse_fields(Study, data, (), problems)
    for key in ("optimizers", "learning_rates", "weight_decays", "seeds", "loss_multipliers"):
        if key in values and not values[key]:
            problems.add((key,), "is an empty list; it needs at least one entry.")
    labels = {("optimizers", i): spec.label for i, spec in enumerate(values.get("optimizers", ()))}
    _check_unique(labels, problems, "label")
    _check_values(data, problems)
    _check_optimizer_names(data, problems)
    _check_task(values, problems)
    if problems.found:
        return None
    study = Study(**values)
    for i, spec in enumerate(study.optimizers):
        try:
            check_optimizer(spec.name, spec.optim_args, max(study.learning_rates), max(study.weight_decays))
        except ValueError as error:
            problems.add(("optimizers", i), str(error))
    return study


_RULES: tuple[tuple[str, type, str, Callable[[Any], bool]], ...] = (
    ("learning_rates", float, "a learning rate must be positive", lambda value: value > 0),
    ("weight_decays", float, "a weight decay must not be negative", lambda value: value >= 0),
    ("loss_multipliers", float, "a loss multiplier must be positive", lambda value: value > 0),
    ("seeds", int, "a seed must be in [0, 2^32)", lambda value: 0 <= value < 2**32),
    ("record_scales_every", int, "it must be at least 1, or 0 for never", lambda value: value >= 0),
    ("retries", int, "it must not be negative", lambda value: value >= 0),
    ("name", str, "it must be usable as a folder's name", lambda value: "/" not in value and bool(value.strip(" ."))),
)


def _check_values(data: Any, problems: Problems) -> None:
    """Check ranges entry by entry, so that an entry of the wrong type does not hide another one's mistake."""
    for key, kind, rule, is_right in _RULES:
        given = data.get(key) if isinstance(data, dict) else None
        entries = {(key, i): value for i, value in enumerate(given)} if isinstance(given, list) else {(key,): given}
        of_type = {}
        for path, entry in entries.items():
            unreadable = Problems("")
            value = convert(kind, entry, path, unreadable)
            if unreadable.found:
                continue  # told already
            of_type[path] = value
            if not is_right(value):
                problems.add(path, f"is {value!r}; {rule}.")
        _check_unique(of_type, problems)


def _check_optimizer_names(data: Any, problems: Problems) -> None:
    optimizers = data.get("optimizers") if isinstance(data, dict) else None
    known = known_optimizers()
    for i, item in enumerate(optimizers if isinstance(optimizers, list) else []):
        name = item.get("name") if isinstance(item, dict) else None
        if isinstance(name, str) and name not in known:
            problems.add(("optimizers", i, "name"), f"there is no optimizer {name!r}; {one_of(name, known)}")


def _check_task(values: dict[str, Any], problems: Problems) -> None:
    """Check the task and its options, and fill in those that were left out."""
    name = values.get("task")
    if name is None:
        return
    if name not in TASKS:
        problems.add(("task",), f"there is no task {name!r}; {one_of(name, TASKS)}")
        return
    task = parse(task_class(name), values.get("model", {}), ("model",), problems)
    if task is None:
        return
    metric = values.get("selection_metric", "accuracy")
    _check_data(task, metric, ("model",), problems)
    values["model"] = dataclasses.asdict(task)
    variants = values.get("model_variants", {})
    models: dict[tuple[str, str], str] = {}
    for label, overrides in variants.items():
        path = ("model_variants", str(label))
        if not (isinstance(label, str) and label.strip()):
            problems.add(path, f"the label {label!r} must be a text: put it between quotes.")
            continue
        # Only what the variant itself says is read: mistakes in `model` are told once.
        given = parse_fields(type(task), {**values["model"], **overrides}, path, problems)
        if not all(key in given for key in overrides):
            continue
        try:
            variant = type(task)(**given)
        except ValueError as error:
            problems.add(path, str(error))
            continue
        _check_data(variant, metric, path, problems)
        variants[label] = {key: getattr(variant, key) for key in overrides}
        models[path] = repr(variant)
    _check_unique(models, problems, "model")
    if metric == "loss" and values.get("greater_is_better", True):
        problems.add(("greater_is_better",), "must be false for the metric loss: the smallest loss is the best.")


def _check_data(task: Task, metric: str, path: Path, problems: Problems) -> None:
    """Check that there is a split to report on, and that the metric to choose by is one of the task's."""
    try:
        if not task.has_test:
            problems.add(path, "these options leave no test split to report on; hold some of the training data out.")
    except ValueError as error:  # for some tasks the data must be read to know
        problems.add(path, str(error))
    metrics = (*task.metrics, "loss")
    if metric not in metrics:
        problems.add(("selection_metric",), f"is {metric!r}; {one_of(metric, metrics)}")


def _check_unique(entries: Mapping[Any, Hashable], problems: Problems, what: str = "value") -> None:
    seen: set[Hashable] = set()
    for path, value in entries.items():
        if value in seen:
            problems.add(path, f"the {what} {value!r} stands here twice; every {what} must be another one.")
        seen.add(value)
