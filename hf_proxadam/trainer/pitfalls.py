"""What accelerate or the Trainer would silently make something else of than was asked for."""

import ast
import inspect
import os
import textwrap
from typing import Any

import torch

from .catalog import OptimizerEntry


def refuse_replacement(name: str) -> None:
    """Refuse a DeepSpeed configuration under which accelerate puts an Adam of DeepSpeed's in the optimizer's place.

    Raises:
        ValueError: the optimizer is offloaded, and "zero_force_ds_cpu_optimizer" is not false.
    """
    from accelerate.state import AcceleratorState

    # Asked in a way that does not create the state where there is none yet.
    plugin = AcceleratorState().deepspeed_plugin if AcceleratorState._shared_state else None
    config = getattr(plugin, "deepspeed_config", None) or {}
    offload = (config.get("zero_optimization") or {}).get("offload_optimizer") or {}
    if offload.get("device", "none") != "none" and config.get("zero_force_ds_cpu_optimizer", True):
        raise ValueError(
            f"The DeepSpeed configuration offloads the optimizer to {offload['device']!r}, and accelerate would put "
            f'DeepSpeedCPUAdam in the place of {name!r}: set "zero_force_ds_cpu_optimizer": false in it, or leave '
            '"offload_optimizer" out'
        )


def found(
    entry: OptimizerEntry, options: dict[str, Any], chosen: dict[str, Any], args: Any, model: torch.nn.Module | None
) -> list[str]:
    """Find what will not be as it was asked for, one sentence each.

    Args:
        entry: the row of the catalog.
        options: what the optimizer will be made with.
        chosen: those of them that `optim_args` gives.
        args: the TrainingArguments.
        model: as the Trainer has it, or None.
    """
    checks = (
        _ignored_epsilon(entry, chosen, args),
        _no_strength(options, args),
        _clipping(entry, options, args),
        _ignored_fsdp(args),
        _multiplied_gradients(args, model),
    )
    return [sentence for sentence in checks if sentence is not None]


def _ignored_epsilon(entry: OptimizerEntry, chosen: dict[str, Any], args: Any) -> str | None:
    if "eps" not in entry.defaults or "eps" in chosen or args.adam_epsilon == type(args).adam_epsilon:
        return None
    override = "" if "direction" in entry.defaults else "; optim_args='eps=...' would set it all the same"
    return f"adam_epsilon={args.adam_epsilon} is ignored: {entry.name!r} is scale-free, with eps=0{override}"


def _no_strength(options: dict[str, Any], args: Any) -> str | None:
    if options.get("proximal", "l2") == "l2" or args.weight_decay != 0:
        return None
    return f"proximal={options['proximal']!r} has no effect: weight_decay is its strength, and it is 0"


def _clipping(entry: OptimizerEntry, options: dict[str, Any], args: Any) -> str | None:
    if options["eps"] != 0 or not args.max_grad_norm or args.max_grad_norm < 0:
        return None
    return (
        f"max_grad_norm={args.max_grad_norm} clips all gradients by their common norm, so that the updates of "
        f"{entry.name!r} depend on the scale of every gradient after all: set max_grad_norm=0"
    )


def _ignored_fsdp(args: Any) -> str | None:
    from accelerate.state import AcceleratorState

    asked = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if not (asked and AcceleratorState._shared_state):
        return None
    kind = str(getattr(AcceleratorState().distributed_type, "value", AcceleratorState().distributed_type))
    if kind == "FSDP":
        return None
    return (
        f"FSDP was asked for, but accelerate ignores it on device {args.device.type!r} with {args.world_size} "
        f"process(es) (its kind of run is {kind}): every process holds the whole model and the whole optimizer state"
    )


def _multiplied_gradients(args: Any, model: torch.nn.Module | None) -> str | None:
    """See `divides_loss_itself`; transformers issue 47688."""
    processes = max(args.world_size, args.n_gpu) if getattr(args, "average_tokens_across_devices", False) else 1
    factor = args.gradient_accumulation_steps * processes
    if model is None or factor == 1 or not divides_loss_itself(model):
        return None
    return (
        f"The gradients of {_inner(model).__name__} come out multiplied by {factor} (gradient_accumulation_steps x "
        "processes; transformers issue 47688), unless the Trainer has a compute_loss_func, or its "
        "model_accepts_loss_kwargs is False: set model.accepts_loss_kwargs = False before you make the Trainer"
    )


def divides_loss_itself(model: torch.nn.Module) -> bool:
    """Whether the Trainer takes a model to divide its loss by `num_items_in_batch` that takes the mean by itself.

    The Trainer concludes it from `**kwargs` in the signature of `forward`. Whether `forward` hands them on to what
    computes its loss is read from its source here; where that can't be had, the answer is no.
    """
    forward = _inner(model).forward
    if not getattr(_base(model), "accepts_loss_kwargs", True):
        return False
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(forward).parameters.values()):
        return False
    try:
        source = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    except (OSError, TypeError, SyntaxError):
        return False
    losses = [node for node in ast.walk(source) if isinstance(node, ast.Call) and _computes_loss(node.func)]
    handed_on = {keyword.arg for call in losses for keyword in call.keywords}  # None stands for **kwargs
    return bool(losses) and not handed_on & {None, "num_items_in_batch"}


def _computes_loss(function: ast.expr) -> bool:
    name = getattr(function, "attr", getattr(function, "id", "")).lower()  # a.b.NAME(...) or NAME(...)
    return "loss" in name or "cross_entropy" in name


def _base(model: torch.nn.Module) -> Any:
    """The model inside PEFT's wrapper, which is what the Trainer looks at."""
    unwrap: Any = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def _inner(model: torch.nn.Module) -> type[torch.nn.Module]:
    return type(_base(model))
