"""The passes over a tensor: once with plain operations for any device and dtype, once for float32 on a CPU.

Both return the vector that `statistics` defines; the tests hold them against each other and against float64.
"""

import itertools
import threading

import numpy
import torch

from hf_proxadam.scales.store import BINS, MIN_EXPONENT

SUM_SQUARES, FINITE, ZEROS, NONFINITE, SAMPLED = range(5)
HISTOGRAM = slice(5, 5 + BINS)
ADDITIVE = slice(0, 5 + BINS)
MAX, MIN = 5 + BINS, 6 + BINS
EXTREMES = slice(5 + BINS, 7 + BINS)
WIDTH = 7 + BINS

MAGNITUDE = 0x7FFFFFFF
INFINITY = 0x7F800000
MANTISSA_WIDTH = 23
SMALLEST_NORMAL = 1 << MANTISSA_WIDTH
_EXPONENT_BIAS = 127
FIELDS = 256
"""Values of a float32's exponent bits: the first stands for zeros and subnormals, the last for what is not finite."""
FIRST_NORMAL_BIN = 1 - _EXPONENT_BIAS - MIN_EXPONENT
"""The histogram's bin of the smallest normal number."""
# What torch still runs on one thread: a piece and its copies stay in the cache, and no threads wait for each other.
_CPU_PIECE = 2**15


class _Scratch(threading.local):
    """Memory that the passes share: memory that is new each time costs more than what is done with it."""

    def __init__(self) -> None:
        self.single = torch.empty(_CPU_PIECE, dtype=torch.float32)
        self.bits = torch.empty(_CPU_PIECE, dtype=torch.int32)


_scratch = _Scratch()


def measure_anywhere(x: torch.Tensor, exact: bool) -> torch.Tensor:
    """Measure a float32 or float64 tensor. No branch depends on a value, so no device is waited for.

    Args:
        x: Shape (n,), n at least 1.
        exact: Whether the histogram is made.

    Returns:
        Shape (WIDTH,), float64.
    """
    result = torch.zeros(WIDTH, dtype=torch.float64, device=x.device)
    finite = torch.isfinite(x)
    magnitude = torch.where(finite, x, 0).abs()
    nonzero = magnitude > 0
    finite_count = finite.sum()
    result[SUM_SQUARES] = torch.linalg.vector_norm(magnitude, dtype=torch.float64).square()
    result[FINITE] = finite_count
    result[ZEROS] = finite_count - nonzero.sum()
    result[NONFINITE] = x.numel() - finite_count
    result[MAX] = magnitude.amax()
    smallest = torch.where(nonzero, magnitude, torch.inf).amin()
    result[MIN] = torch.where(smallest < torch.inf, smallest, 0)
    if exact:
        result[HISTOGRAM] = histogram(x)
        result[SAMPLED] = x.numel()
    return result


def histogram(x: torch.Tensor) -> torch.Tensor:
    """Count the finite non-zero entries by exponent: shape (n,) to (BINS,), float64, on any device."""
    counted = torch.isfinite(x) & (x != 0)
    # frexp gives x = mantissa * 2^exponent with 0.5 <= |mantissa| < 1, for subnormals too.
    bins = (torch.frexp(x).exponent - 1 - MIN_EXPONENT).clamp_(0, BINS - 1)
    bins = torch.where(counted, bins, BINS).long()
    counts = torch.zeros(BINS + 1, dtype=torch.float64, device=x.device)
    # Not bincount or histc: on a GPU the one waits for the device, and deterministic training forbids the other.
    return counts.scatter_add_(0, bins, torch.ones_like(bins, dtype=torch.float64))[:BINS]


def measure_on_cpu(x: torch.Tensor, exact: bool, before: torch.Tensor | None = None) -> torch.Tensor:
    """Measure a tensor on the CPU as `measure_anywhere` does, in pieces that stay in the cache.

    The bits of a float32 without its sign are ordered as its magnitude is, and the upper ones are its exponent.

    Args:
        x: Shape (n,), of a floating-point dtype that float32 holds.
        exact: Whether the histogram is made.
        before: Shape (n,): where given, `x - before` is measured.
    """
    fields = numpy.zeros(FIELDS, dtype=numpy.int64)
    counts = numpy.zeros(BINS, dtype=numpy.int64)
    sum_squares, zeros, nonfinite = 0.0, 0, 0
    largest, smallest = 0, INFINITY  # as bits
    minuends = x.split(_CPU_PIECE)
    subtrahends = itertools.repeat(None) if before is None else before.split(_CPU_PIECE)
    for piece, subtrahend in zip(minuends, subtrahends, strict=False):
        size = piece.numel()
        whole = size == _CPU_PIECE
        piece = piece.float()
        if subtrahend is not None:
            piece = torch.sub(piece, subtrahend.float(), out=_scratch.single if whole else _scratch.single[:size])
        out = _scratch.bits if whole else _scratch.bits[:size]
        bits = torch.bitwise_and(piece.view(torch.int32), MAGNITUDE, out=out)
        low, high = (int(extreme) for extreme in torch.aminmax(bits))
        if high >= INFINITY:
            bits = bits[bits < INFINITY]
            nonfinite += size - bits.numel()
            size = bits.numel()
            if size == 0:
                continue
            piece = bits.view(torch.float32)
            low, high = (int(extreme) for extreme in torch.aminmax(bits))
        if low == 0:
            zeros += size - int(torch.count_nonzero(bits))
            # One less puts the zeros, as the largest numbers of all, out of the way.
            low = int((bits - 1 & MAGNITUDE).amin()) + 1
        largest, smallest = max(largest, high), min(smallest, low)
        # Not a dot product: BLAS would start threads, which on a busy machine wait for each other.
        sum_squares += float(torch.linalg.vector_norm(piece, dtype=torch.float64)) ** 2
        if exact:
            if low < SMALLEST_NORMAL:
                tiny = bits[(bits > 0) & (bits < SMALLEST_NORMAL)].numpy()
                counts += numpy.bincount(subnormal_bins(tiny), minlength=BINS)
            fields += torch.bincount(bits.bitwise_right_shift_(MANTISSA_WIDTH), minlength=FIELDS).numpy()
    result = numpy.zeros(WIDTH)
    result[SUM_SQUARES] = sum_squares
    result[FINITE] = x.numel() - nonfinite
    result[ZEROS] = zeros
    result[NONFINITE] = nonfinite
    result[[MAX, MIN]] = numpy.array([largest, smallest % INFINITY], dtype=numpy.int32).view(numpy.float32)
    if exact:
        counts[FIRST_NORMAL_BIN : FIRST_NORMAL_BIN + FIELDS - 2] += fields[1:-1]
        result[HISTOGRAM] = counts
        result[SAMPLED] = x.numel()
    return torch.from_numpy(result)


def subnormal_bins(bits: numpy.ndarray) -> numpy.ndarray:
    """Return the histogram's bins of subnormal numbers, given as bits without their sign."""
    # A subnormal is its bits times 2^MIN_EXPONENT, and those bits are a whole number that float32 holds exactly.
    return (bits.astype(numpy.float32).view(numpy.int32) >> MANTISSA_WIDTH) - _EXPONENT_BIAS
