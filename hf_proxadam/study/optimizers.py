"""Whether an optimizer would start, asked before anything else is read or run, and what it is once it runs."""

import dataclasses
import warnings
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

import hf_proxadam  # noqa: F401  (registers our optimizers with transformers)
from hf_proxadam.study.parsing import one_of

# These keys mean that transformers would build the optimizer from more than its parameter groups.
_NEEDS_THE_MODEL = {"params", "model", "optimizer_dict"}


def known_optimizers() -> list[str]:
    """The names that `TrainingArguments(optim=...)` takes, ours and transformers' own, sorted."""
    return sorted(member.value for member in OptimizerNames)


def check_optimizer(
    name: str, optim_args: str | None = None, learning_rate: float = 1e-3, weight_decay: float = 0.0
) -> None:
    """Make the optimizer over one dummy parameter, as the Trainer would make it over a model's.

    Raises:
        ValueError: the name is unknown, an `optim_args` key is unknown or would be ignored, a value is refused, or a
            package is missing.
    """
    if name not in known_optimizers():
        raise ValueError(f"There is no optimizer {name!r}; {one_of(name, known_optimizers())}")
    arguments = TrainingArguments(
        optim=name,
        optim_args=optim_args,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        report_to="none",
        use_cpu=True,
    )
    check_training_optimizer(arguments)


def check_training_optimizer(arguments: TrainingArguments) -> None:
    """The same for arguments that are there already: their optimizer, its arguments, learning rate and weight decay.

    Raises:
        ValueError: as `check_optimizer`.
    """
    name, given = str(getattr(arguments.optim, "value", arguments.optim)), arguments.optim_args
    if not 0 <= arguments.learning_rate < float("inf"):
        raise ValueError(f"The learning rate is {arguments.learning_rate}; it must be a finite number from 0.")
    if not 0 <= arguments.weight_decay < float("inf"):
        raise ValueError(f"The weight decay is {arguments.weight_decay}; it must be a finite number from 0.")
    pairs = [pair.strip() for pair in given.split(",")] if given else []
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not (key.strip() and sign and value.strip()):
            raise ValueError(f"optim_args has the part {pair!r}; it must be written key=value,key=value.")
    cls, kwargs = _resolve(arguments, name, given)
    for pair in pairs:
        without = ",".join(other for other in pairs if other is not pair) or None
        try:
            same = repr(_resolve(arguments, name, without)) == repr((cls, kwargs))
        except ValueError:
            continue  # it can't do without this key, so it does not ignore it
        if same:
            raise ValueError(f"optim_args {pair} has no effect on {name}: transformers ignores it there. Leave it out.")
    if _NEEDS_THE_MODEL & set(kwargs):
        return
    group = {"params": [torch.nn.Parameter(torch.zeros(1))], "weight_decay": arguments.weight_decay}
    try:
        cls([group], **kwargs)
    except (TypeError, ValueError, ImportError) as error:
        raise ValueError(f"The optimizer {name} can't be made: {error}") from error


def describe_optimizer(optimizer: Any) -> dict[str, Any]:
    """What really runs: the live optimizer (inside accelerate's wrapper), in JSON's types.

    Returns:
        `class`; `defaults`, as the class was made with; and `groups`, which is what counts: for every parameter group
        its `weight_decay`, its peak learning rate `lr` and the number of `parameters` (entries) in it.
    """
    inner = optimizer
    while not isinstance(inner, torch.optim.Optimizer) or hasattr(inner, "optimizer"):
        inner = inner.optimizer  # accelerate's wrapper, and DeepSpeed's inside it
    cls = type(inner)
    groups = [
        {
            "lr": _plain(group.get("initial_lr", group["lr"])),
            "weight_decay": _plain(group.get("weight_decay")),
            "parameters": sum(param.numel() for param in group["params"]),
        }
        for group in inner.param_groups
    ]
    return {
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "defaults": _plain(inner.defaults),
        "groups": [group for group in groups if group["parameters"]],
    }


def _resolve(arguments: TrainingArguments, name: str, optim_args: str | None) -> tuple[Any, dict[str, Any]]:
    # The model stands in for one that is not there yet: whether its modules are selected is asked when it is. So it is
    # with warnings, which the Trainer gives when it makes the optimizer that really runs.
    model, modules = torch.nn.Sequential(torch.nn.Linear(1, 1)), arguments.optim_target_modules and "all-linear"
    changed = dataclasses.replace(arguments, optim=name, optim_args=optim_args, optim_target_modules=modules)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Trainer.get_optimizer_cls_and_kwargs(changed, model)
    except (ImportError, TypeError) as error:
        raise ValueError(f"The optimizer {name} can't be used: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    # Never the default repr of an object: its address would differ from run to run.
    return f"{type(value).__module__}.{type(value).__qualname__}"
