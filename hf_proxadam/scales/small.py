"""Many small float32 tensors on a CPU at once: one call for each would cost far more than what it does."""

from collections.abc import Sequence

import numpy
import torch

from hf_proxadam.scales.pieces import (
    FIELDS,
    FINITE,
    FIRST_NORMAL_BIN,
    HISTOGRAM,
    INFINITY,
    MAGNITUDE,
    MANTISSA_WIDTH,
    MAX,
    MIN,
    NONFINITE,
    SAMPLED,
    SMALLEST_NORMAL,
    SUM_SQUARES,
    WIDTH,
    ZEROS,
    subnormal_bins,
)

_SMALL = 2**13


def is_small(flat: torch.Tensor) -> bool:
    """Tell whether a tensor is one for `measure_small`."""
    return flat.device.type == "cpu" and flat.dtype != torch.float64 and 0 < flat.numel() <= _SMALL


def measure_small(tensors: Sequence[torch.Tensor], before: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
    """Measure each tensor as `pieces.measure_on_cpu` does, in passes over all of them together.

    Args:
        tensors: At least one; each of shape (n,), n at least 1, of one dtype that float32 holds.
        before: Where given, the differences `tensors[i] - before[i]` are measured.

    Returns:
        Shape (len(tensors), WIDTH), float64, with exact histograms.
    """
    together = torch.cat(list(tensors)).float()
    if before is not None:
        together = together - torch.cat(list(before)).float()
    sizes = numpy.array([tensor.numel() for tensor in tensors])
    starts = numpy.concatenate([[0], sizes.cumsum()[:-1]])
    which = numpy.repeat(numpy.arange(len(sizes)), sizes)
    bits = together.numpy().view(numpy.int32) & MAGNITUDE
    nonfinite = numpy.zeros(len(sizes), dtype=numpy.int64)
    if bits.max() >= INFINITY:
        broken = bits >= INFINITY
        nonfinite = numpy.bincount(which[broken], minlength=len(sizes))
        bits[broken] = 0  # taken out of the zeros again below
    values = bits.view(numpy.float32).astype(numpy.float64)
    fields = numpy.bincount(which * FIELDS + (bits >> MANTISSA_WIDTH), minlength=len(sizes) * FIELDS).reshape(
        -1, FIELDS
    )
    smallest = numpy.minimum.reduceat(numpy.where(bits == 0, INFINITY, bits), starts)

    result = numpy.zeros((len(sizes), WIDTH))
    result[:, SUM_SQUARES] = numpy.add.reduceat(values * values, starts)
    result[:, FINITE] = sizes - nonfinite
    result[:, ZEROS] = numpy.bincount(which[bits == 0], minlength=len(sizes)) - nonfinite
    result[:, NONFINITE] = nonfinite
    result[:, SAMPLED] = sizes
    result[:, MAX] = numpy.maximum.reduceat(bits, starts).view(numpy.float32)
    result[:, MIN] = (smallest % INFINITY).astype(numpy.int32).view(numpy.float32)
    histogram = result[:, HISTOGRAM]
    histogram[:, FIRST_NORMAL_BIN : FIRST_NORMAL_BIN + FIELDS - 2] = fields[:, 1:-1]
    tiny = (bits > 0) & (bits < SMALLEST_NORMAL)
    if tiny.any():
        numpy.add.at(histogram, (which[tiny], subnormal_bins(bits[tiny])), 1)
    return torch.from_numpy(result)
