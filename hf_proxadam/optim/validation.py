"""What the options of an optimizer may be. Everything is checked here, before any state is touched."""

import math
import warnings
from numbers import Real
from typing import Any

from torch import Tensor

from .update import DECAY_SCHEDULES

_FLAGS = ("amsgrad", "maximize", "capturable", "differentiable", "compile")
_CHOICES = {
    "decay_schedule": DECAY_SCHEDULES,
    "direction": ("ratio", "atan2"),
    "rounding": ("nearest", "stochastic"),
    "start": (None, "current", "given"),
}


def check(options: dict[str, Any], optimizer: str) -> None:
    """Check the options of one parameter group, the constructor's filled in.

    Args:
        options: name to value; `initial_lr` may be missing (it is `lr` then).
        optimizer: the class's name, for the messages.

    Raises:
        ValueError: names the option, its value and what is allowed. The wording is torch's where torch has one.
    """
    _check_numbers(options)
    for name in _FLAGS:
        if not isinstance(options[name], bool):
            raise ValueError(f"Invalid {name} value: {options[name]!r} (True or False)")
    for name in ("foreach", "fused"):
        if not (options[name] is None or isinstance(options[name], bool)):
            raise ValueError(f"Invalid {name} value: {options[name]!r} (True, False or None)")
    for name, allowed in _CHOICES.items():
        if name in options and options[name] not in allowed:
            raise ValueError(f"Invalid {name} value: {options[name]!r} (one of {', '.join(map(repr, allowed))})")
    if not (type(options["seed"]) is int and options["seed"] >= 0):
        raise ValueError(f"Invalid seed value: {options['seed']!r} (an integer >= 0)")
    _check_combinations(options, optimizer)


def _check_numbers(options: dict[str, Any]) -> None:
    _check_tensors(options)
    lr = _number(options["lr"])
    if not _is_number(lr) or lr < 0:
        raise ValueError(f"Invalid learning rate: {lr!r} (a finite number >= 0, or a one-element tensor)")
    initial_lr = _number(options.get("initial_lr", lr))  # a scheduler of torch's puts a tensor there where lr is one
    if options["decay_schedule"] in DECAY_SCHEDULES[1:] and initial_lr == 0:
        raise ValueError(
            f"decay_schedule={options['decay_schedule']!r} divides by the initial learning rate, which is 0: give the "
            "peak learning rate as lr and let a scheduler start below it, or set the group's initial_lr"
        )
    betas = options["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"Invalid betas value: {betas!r} (two numbers from 0 to 1, 1 excluded)")
    betas = [_number(beta) for beta in betas]
    for i, beta in enumerate(betas):
        if not _is_number(beta) or not 0 <= beta < 1:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta!r} (a number from 0 to 1, 1 excluded)")
    if not _is_number(options["eps"]) or options["eps"] < 0:
        raise ValueError(f"Invalid epsilon value: {options['eps']!r} (a finite number >= 0)")
    weight_decay = _number(options["weight_decay"])
    if not _is_number(weight_decay) or weight_decay < 0:
        raise ValueError(f"Invalid weight_decay value: {weight_decay!r} (a finite number >= 0)")
    if options["eps"] == 0 and betas[0] ** 2 >= betas[1] and betas[0] > 0:
        warnings.warn(
            f"betas={tuple(betas)} have beta1^2 >= beta2: with eps=0 the bound |m|/sqrt(v) <= "
            "(1 - beta1)/sqrt((1 - beta2)(1 - beta1^2/beta2)) on the length of a step is lost; choose beta1^2 < beta2",
            stacklevel=6,
        )


def _check_tensors(options: dict[str, Any]) -> None:
    """Where a tensor may stand for a number; the sentences are torch's."""
    lr, betas = options["lr"], options["betas"]
    lists = options["foreach"] and not options["capturable"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"Tensor lr must be 1-element, got shape {tuple(lr.shape)}")
        if lists:
            raise ValueError(
                "lr as a Tensor is not supported for capturable=False and foreach=True; leave foreach at None"
            )
    if isinstance(options["weight_decay"], Tensor) and options["weight_decay"].numel() != 1:
        raise ValueError("Tensor weight_decay must be 1-element")
    if isinstance(betas, (tuple, list)) and any(isinstance(beta, Tensor) for beta in betas):
        if not all(isinstance(beta, Tensor) for beta in betas):
            raise ValueError("betas must be either both floats or both Tensors")
        for i, beta in enumerate(betas):
            if lists:
                raise ValueError(f"betas[{i}] as a Tensor is not supported for capturable=False and foreach=True")
            if beta.numel() != 1:
                raise ValueError(f"Tensor betas[{i}] must be 1-element")


def _check_combinations(options: dict[str, Any], optimizer: str) -> None:
    if options["fused"]:
        refused = "differentiable=True" if options["differentiable"] else "this version, which has no fused kernel"
        raise ValueError(
            f"{optimizer}: fused=True does not go with {refused}; use fused=None (cache-sized pieces) or compile=True"
        )
    chosen = [name for name in ("foreach", "compile", "differentiable") if options[name]]
    if len(chosen) > 1:
        raise ValueError(f"{optimizer}: {' and '.join(f'{n}=True' for n in chosen)} can't go together; choose one")
    if options["compile"] and options["capturable"]:
        raise ValueError(f"{optimizer}: compile=True and capturable=True can't go together; choose one")
    if options["rounding"] == "stochastic" and (options["differentiable"] or options["capturable"]):
        raise ValueError(f"{optimizer}: rounding='stochastic' does not go with differentiable or capturable")
    if options.get("direction") == "atan2" and options["eps"] != 0:
        raise ValueError(f"direction='atan2' has no epsilon: set eps=0, got eps={options['eps']}")
    if "proximal" in options:
        start = options["start"]
        if options["proximal"] == "l2_start" and start is None:
            raise ValueError(
                "proximal='l2_start' needs a start to pull towards: start='current' for the weights as they are before "
                "the first step, or one tensor for each parameter"
            )
        if options["proximal"] != "l2_start" and start is not None:
            raise ValueError(f"start only goes with proximal='l2_start', got proximal={options['proximal']!r}")
        if options["l1_ratio"] is not None and options["proximal"] != "elastic_net":
            raise ValueError(
                f"l1_ratio={options['l1_ratio']} only goes with proximal='elastic_net', got "
                f"proximal={options['proximal']!r}"
            )


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
