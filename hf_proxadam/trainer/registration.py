"""Enters the catalog into transformers, so that `TrainingArguments(optim="proxadam")` works.

transformers has no public registry: names are members of the enum `OptimizerNames`, and the Trainer looks the name up
in a private table (since 5.2) or in `Trainer.get_optimizer_cls_and_kwargs` (before). This is the only file that touches
either.
"""

import functools
import warnings
from typing import Any

from transformers.training_args import OptimizerNames

from .catalog import CATALOG, OptimizerEntry
from .options import parse


def register() -> None:
    """Enter every name of the catalog; entering twice is harmless.

    A name that transformers itself owns by now is left to it, with a warning.
    """
    ours = {name: entry for name, entry in CATALOG.items() if _add_member(name)}
    try:
        from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS
    except ImportError:  # before 5.2
        _wrap_lookup(ours)
        return
    for name, entry in ours.items():
        _OPTIMIZER_HANDLERS[OptimizerNames(name)] = functools.partial(_handle, entry)


def _add_member(name: str) -> bool:
    """Add `name` to `OptimizerNames` as a real member; False where transformers has one of that name itself."""
    existing = OptimizerNames._value2member_map_.get(name)
    if existing is not None:
        if getattr(existing, "_from_hf_proxadam", False):
            return True
        warnings.warn(
            f"transformers has an optimizer named {name!r} of its own now; hf_proxadam leaves the name to it",
            stacklevel=4,
        )
        return False
    member = str.__new__(OptimizerNames, name) if issubclass(OptimizerNames, str) else object.__new__(OptimizerNames)
    member._name_, member._value_ = name.upper(), name
    member._sort_order_ = len(OptimizerNames._member_names_)
    member._from_hf_proxadam = True
    # Pickled as a plain string, so that training_args.bin loads where this package is not installed.
    member.__reduce_ex__ = functools.partial(_reduce_to_string, name)
    OptimizerNames._member_names_.append(member._name_)
    OptimizerNames._member_map_[member._name_] = member
    OptimizerNames._value2member_map_[name] = member
    type.__setattr__(OptimizerNames, member._name_, member)
    return True


def _reduce_to_string(name: str, protocol: int) -> tuple[Any, ...]:
    return str, (name,)


def optimizer_kwargs(entry: OptimizerEntry, args: Any) -> dict[str, Any]:
    """The options that a TrainingArguments asks for: its own fields, the name's defaults, then `optim_args`.

    `adam_epsilon` does not reach a name that is defined by eps = 0.

    Raises:
        ValueError: wrong `optim_args`, or `optim_target_modules`, which these optimizers have no use for.
    """
    if getattr(args, "optim_target_modules", None):
        raise ValueError(
            f"optim_target_modules={args.optim_target_modules!r} has no effect on {entry.name!r}: leave it out"
        )
    kwargs: dict[str, Any] = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2)}
    if "eps" not in entry.defaults:
        kwargs["eps"] = args.adam_epsilon
    return {**kwargs, **entry.defaults, **parse(entry, args.optim_args)}


def _handle(entry: OptimizerEntry, context: Any) -> tuple[type, dict[str, Any]]:
    return entry.cls, optimizer_kwargs(entry, context.args)


def _wrap_lookup(entries: dict[str, OptimizerEntry]) -> None:
    from transformers import Trainer

    original = Trainer.get_optimizer_cls_and_kwargs
    if getattr(original, "_from_hf_proxadam", False):
        return

    @functools.wraps(original)
    def lookup(args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        entry = entries.get(getattr(args.optim, "value", args.optim))
        return original(args, model) if entry is None else (entry.cls, optimizer_kwargs(entry, args))

    lookup._from_hf_proxadam = True  # type: ignore[attr-defined]
    Trainer.get_optimizer_cls_and_kwargs = staticmethod(lookup)
