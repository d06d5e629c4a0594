"""Enters the catalog into transformers, so that `TrainingArguments(optim="proxadam")` works.

transformers has no public registry: names are members of the enum `OptimizerNames`, and the Trainer looks them up in
its static method `get_optimizer_cls_and_kwargs`. This is the only file that changes either. (Since 5.2 the method has a
private table behind it. We answer before it is asked, for the method splits `optim_args` in a way of its own first.)
"""

import functools
import warnings
from typing import Any

from transformers.training_args import OptimizerNames

from .arguments import resolve
from .catalog import CATALOG, OptimizerEntry


def register() -> None:
    """Enter every name of the catalog; entering twice is harmless.

    A name that transformers itself owns by now is left to it, with a warning.
    """
    _wrap_lookup({name: entry for name, entry in CATALOG.items() if _add_member(name)})


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


def _wrap_lookup(entries: dict[str, OptimizerEntry]) -> None:
    from transformers import Trainer

    original = Trainer.get_optimizer_cls_and_kwargs
    if getattr(original, "_from_hf_proxadam", False):
        return

    @functools.wraps(original)
    def lookup(args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        entry = entries.get(getattr(args.optim, "value", args.optim))
        return original(args, model) if entry is None else resolve(entry, args, model)

    lookup._from_hf_proxadam = True  # type: ignore[attr-defined]
    Trainer.get_optimizer_cls_and_kwargs = staticmethod(lookup)
