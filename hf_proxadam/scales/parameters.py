"""Which parameters are recorded, under which names, and who can't be recorded."""

from collections.abc import Iterator
from typing import Any

import torch

DEEPSPEED_REFUSED = (
    "Gradient scales can't be recorded under DeepSpeed, whose optimizers see flat shards without the parameters' "
    "names; train with DDP or FSDP2, or leave the recorder out."
)


def inner_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that does the work: accelerate's wrapper has no step hooks."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def named_parameters(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.Tensor, Any]]:
    """Walk the parameters that `optimizer` updates: name, parameter, learning rate.

    It is walked anew in each recorded step and nothing of it is kept, because FSDP2 swaps parameters. They come in the
    model's order, named without the prefixes of wrappers (DistributedDataParallel, torch.compile); parameters that the
    model doesn't have follow, named after their place in the optimizer.
    """
    while isinstance(model, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
        model = model.module
    updated: dict[torch.Tensor, tuple[str, Any]] = {}
    for index, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if parameter.requires_grad:
                updated[parameter] = f"optimizer.group{index}.{place}", group.get("lr")
    for name, parameter in model.named_parameters():
        if parameter in updated:
            yield plain_name(name), parameter, updated.pop(parameter)[1]
    for parameter, (name, learning_rate) in updated.items():
        yield name, parameter, learning_rate


def plain_name(name: str) -> str:
    """Take the prefixes that torch.compile and activation checkpointing put in out of a parameter's name."""
    return ".".join(part for part in name.split(".") if part not in ("_orig_mod", "_checkpoint_wrapped_module"))


def refuse_unsupported(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse what would be recorded wrongly.

    Raises:
        ValueError: For DeepSpeed, FSDP1 and devices without float64.
    """
    if any("deepspeed" in type(part).__module__ for part in (model, optimizer, inner_optimizer(optimizer))) or any(
        hasattr(parameter, "ds_id") for parameter in model.parameters()
    ):
        raise ValueError(DEEPSPEED_REFUSED)
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "Gradient scales can't be recorded under FSDP version 1, which flattens parameters; use version 2 "
            "(fsdp_version: 2), DDP, or leave the recorder out."
        )
    for parameter in model.parameters():
        if parameter.device.type in ("mps", "xla"):
            raise ValueError(
                f"Gradient scales can't be recorded on a device of type {parameter.device.type!r}, which lacks "
                "float64 or step hooks; train on a CPU or a CUDA device, or leave the recorder out."
            )
