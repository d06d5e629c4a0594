"""Which parameters decay, and which get the proximal map."""

import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..optim.adam_family import AdamFamily


def decay_groups(model: torch.nn.Module, weight_decay: float | Tensor) -> list[dict[str, Any]]:
    """The Trainer's two groups: what decays, and biases and norms, which don't.

    Args:
        model: frozen parameters are left out.
        weight_decay: of the first group; the second has 0.
    """
    from transformers import Trainer

    # The Trainer's own rule, which asks nothing of the Trainer itself.
    decays = set(Trainer.get_decay_parameter_names(None, model))
    trainable = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    return [
        {"params": [param for name, param in trainable if name in decays], "weight_decay": weight_decay},
        {"params": [param for name, param in trainable if name not in decays], "weight_decay": 0.0},
    ]


def select(model: torch.nn.Module, modules: str | Sequence[str]) -> list[Tensor]:
    """The trainable parameters of the selected modules, each module's own without its children's.

    Args:
        model: the model.
        modules: as transformers reads `optim_target_modules`: "all-linear"; one regular expression for whole names of
            modules; or a list of parts of names or regular expressions.

    Raises:
        ValueError: no module is selected, or only frozen ones.
    """
    from transformers.trainer_utils import check_target_module_exists

    linear = isinstance(modules, str) and modules.replace("_", "-") == "all-linear"
    if not (isinstance(modules, str) or all(isinstance(part, str) for part in modules)):
        raise ValueError(
            f"optim_target_modules={modules!r} must be 'all-linear', a regular expression, or a list of strings"
        )
    selected = [
        param
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) if linear else check_target_module_exists(modules, name))
        for param in module.parameters(recurse=False)
        if param.requires_grad
    ]
    if not selected:
        names = ", ".join(name for name, module in model.named_modules() if name and [*module.parameters(False)])
        raise ValueError(
            f"optim_target_modules={modules!r} selects no module with trainable parameters; a string is a regular "
            "expression for the whole name, a list has parts of names, and the modules are "
            + textwrap.shorten(names, 300, placeholder=" ...")
        )
    return selected


def split(groups: Any, selected: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Give the rest of each group that decays a group of its own, with plain l2 in place of the proximal map.

    Args:
        groups: parameter groups; one without decay stays whole, for no map has an effect there.
        selected: parameters that keep the optimizer's proximal map.
    """
    kept = {id(param) for param in selected}
    found = []
    for group in groups:
        if group.get("weight_decay", 1) == 0:
            found.append(group)
            continue
        mine = [param for param in group["params"] if id(param) in kept]
        rest = [param for param in group["params"] if id(param) not in kept]
        found.append({**group, "params": mine})
        found.append({**group, "params": rest, "proximal": "l2", "l1_ratio": None, "start": None})
    return [group for group in found if group["params"]]


def on_selected(cls: type[AdamFamily], selected: Sequence[Tensor]) -> type[AdamFamily]:
    """Make `cls`, but with its proximal map on the `selected` parameters only, whichever groups it is given.

    The Trainer makes the groups (a subclass's own rule for decay included) after it asked for the optimizer's class,
    and takes a callable that is no class for a factory. So this is a class, and calling it gives a plain `cls`.
    """

    def new(_: type, params: Any, **options: Any) -> AdamFamily:
        return cls(split(params, selected), **options)

    return type(cls.__name__, (cls,), {"__new__": new, "__module__": cls.__module__, "__doc__": cls.__doc__})
