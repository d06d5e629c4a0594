"""What a `TrainingArguments` asks for, as a class and the options to call it with."""

import warnings
from typing import Any

import torch

from ..optim.adam_family import AdamFamily
from . import groups, pitfalls
from .catalog import OptimizerEntry
from .options import check_targets, parse


def resolve(entry: OptimizerEntry, args: Any, model: torch.nn.Module | None) -> tuple[type[AdamFamily], dict[str, Any]]:
    """Find what the Trainer calls with its parameter groups: a class, and its options.

    Options are TrainingArguments' own fields, overridden by the name's defaults, overridden by `optim_args`. So
    `adam_epsilon` does not reach a name that is defined by eps = 0, unless `optim_args` sets `eps`.

    Args:
        entry: the row of the catalog.
        args: the TrainingArguments.
        model: what is trained; `optim_target_modules` needs it.

    Raises:
        ValueError: wrong `optim_args`; `optim_target_modules` that can't have an effect; a DeepSpeed configuration
            under which another optimizer would run.

    Warns:
        UserWarning: on the first process, for what will not be as it was asked for (`pitfalls.found`).
    """
    chosen = parse(entry, args.optim_args)
    fields = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    options = {**fields, **entry.defaults, **chosen}
    pitfalls.refuse_replacement(entry.name)
    cls, modules = entry.cls, args.optim_target_modules
    if modules:
        check_targets(entry, options, "optim_target_modules", modules)
        if model is None:
            raise ValueError(f"optim_target_modules={modules!r} needs the model to select its modules from")
        cls = groups.on_selected(cls, groups.select(model, modules))
    if args.process_index == 0:
        for sentence in pitfalls.found(entry, options, chosen, args, model):
            warnings.warn(sentence, stacklevel=3)
    return cls, options
