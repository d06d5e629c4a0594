"""`get_optimizer`: the catalog for training loops without the Trainer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..optim.adam_family import AdamFamily
from . import groups, pitfalls
from .catalog import CATALOG
from .options import check_targets, default_of, known_options


def get_optimizer(
    name: str,
    model_or_params: Any,
    lr: float | Tensor = 1e-3,
    *,
    target_modules: str | Sequence[str] | None = None,
    **options: Any,
) -> AdamFamily:
    """Make the optimizer that `TrainingArguments(optim=name)` would, for a training loop of your own.

    Args:
        name: one of `hf-proxadam list`.
        model_or_params: a model, which is split as the Trainer splits it: `weight_decay` goes to all its trainable
            parameters but biases and norms. Parameters, named parameters and groups are taken as they are.
        lr: learning rate, >= 0.
        target_modules: of a model, the modules that get the proximal map; the rest decays by plain l2. "all-linear", a
            regular expression for whole names of modules, or a list of parts of names, as `optim_target_modules`.
        **options: of the optimizer's class: `weight_decay` (0.01 unless given, 0 for adam_l2), `betas`, `proximal` and
            so on.

    Returns:
        A `torch.optim.Optimizer`; `Accelerator.prepare` takes it.

    Raises:
        ValueError: an unknown name or option, a value outside its range, a model without trainable parameters, or
            a DeepSpeed configuration under which accelerate would replace the optimizer.

    Example:
        >>> import torch
        >>> from hf_proxadam import get_optimizer
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
        >>> optimizer = get_optimizer("proxadam", model, lr=1e-3, weight_decay=0.1)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 0.1), (3, 0.0)]
    """
    entry = CATALOG.get(name)
    if entry is None:
        raise ValueError(f"There is no optimizer {name!r}; known are {', '.join(CATALOG)}")
    known = {*known_options(entry), "weight_decay", "betas"}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise ValueError(f"{name!r} has no option {unknown[0]!r}; it knows {', '.join(sorted(known))}")
    pitfalls.refuse_replacement(name)
    options = {**entry.defaults, **options}
    if target_modules is not None:
        check_targets(entry, options, "target_modules", target_modules)
    make: Any = entry.cls  # each class documents options of its own
    if not isinstance(model_or_params, torch.nn.Module):
        if target_modules is not None:
            raise ValueError(f"target_modules={target_modules!r} needs a model to select them from: give the model")
        return make(model_or_params, lr=lr, **options)
    params = groups.decay_groups(model_or_params, options.get("weight_decay", default_of(entry, "weight_decay")))
    if not any(group["params"] for group in params):
        raise ValueError(f"The {type(model_or_params).__name__} has no trainable parameter for {name!r}")
    if target_modules is not None:
        params = groups.split(params, groups.select(model_or_params, target_modules))
    return make(params, lr=lr, **options)
