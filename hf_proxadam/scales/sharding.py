"""Parameters that lie on several processes (FSDP2, tensor parallelism): local statistics, then one all_reduce."""

from typing import Any

import torch
import torch.distributed

from hf_proxadam.scales.pieces import ADDITIVE, EXTREMES, WIDTH
from hf_proxadam.scales.statistics import combine


def rank() -> int:
    """Return the rank of this process, 0 where there is only one."""
    return torch.distributed.get_rank() if _distributed() else 0


def is_sharded(tensor: Any) -> bool:
    """Tell whether `tensor` is a DTensor, so that all processes must take part."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "device_mesh")


def local(tensor: Any) -> torch.Tensor:
    """Return the part of `tensor` that lies on this process."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full(tensor: Any) -> Any:
    """Return a DTensor as one whole tensor, and anything else as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def counts_here(tensor: Any) -> bool:
    """Tell whether this process's part of `tensor` is to be counted: of equal copies, only the first is."""
    if not is_sharded(tensor):
        return rank() == 0
    where = tensor.device_mesh.get_coordinate()
    if where is None:
        return False
    return not any(placement.is_replicate() and where[dim] != 0 for dim, placement in enumerate(tensor.placements))


def reduce(rows: torch.Tensor) -> torch.Tensor:
    """Add up the statistics of all processes with one all_reduce: shape (rows, WIDTH) to the same.

    The extremes don't add up, so each process puts its own into a column of its own and leaves the others zero.
    """
    if not _distributed():
        return rows
    processes = torch.distributed.get_world_size()
    extremes = torch.zeros(len(rows), processes, 2, dtype=rows.dtype, device=rows.device)
    extremes[:, rank()] = rows[:, EXTREMES]
    both = torch.cat([rows[:, ADDITIVE], extremes.flatten(1)], dim=1)
    torch.distributed.all_reduce(both)
    result = torch.zeros(processes, len(rows), WIDTH, dtype=rows.dtype, device=rows.device)
    result[0, :, ADDITIVE] = both[:, ADDITIVE]
    result[:, :, EXTREMES] = both[:, ADDITIVE.stop :].unflatten(1, (processes, 2)).transpose(0, 1)
    return combine(result)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
