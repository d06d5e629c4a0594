"""What is measured of one tensor, on the device where the tensor lies.

For a tensor x (a gradient, an update or a weight; the unit is that of the loss per parameter for a gradient, and that
of the parameter for the other two) a vector of `WIDTH` float64 numbers is made. All of them but the two extremes add
up over pieces, tensors and processes:

    SUM_SQUARES   sum of x_i^2 over the finite entries, accumulated in float64 (no float32 value can overflow it)
    FINITE        number of finite entries (zeros included)
    ZEROS         number of entries that are exactly zero, of either sign
    NONFINITE     number of entries that are infinite or NaN
    SAMPLED       number of entries that the histogram was made from
    HISTOGRAM     `BINS` numbers; bin i counts the finite non-zero entries with floor(log2 |x|) == i + MIN_EXPONENT
    MAX           largest finite |x|, 0 where there is none
    MIN           smallest non-zero finite |x|, 0 where there is none

The exponents -149 to 127 are those of all non-zero finite float32 values, subnormals included. A float64 value below
or above them counts in the first or the last bin (the last one, 128, has no other use).

A histogram from a sample is weighted: it is scaled so that it adds up to the exact number of non-zero finite entries.
"""

import torch

from hf_proxadam.scales.pieces import (
    FINITE,
    HISTOGRAM,
    MAX,
    MIN,
    SAMPLED,
    WIDTH,
    ZEROS,
    histogram,
    measure_anywhere,
    measure_on_cpu,
)

SAMPLE_SIZE = 2**16
"""The default number of coordinates that the histogram of a large tensor is made from."""
SAMPLED_FROM = 4
"""A tensor is sampled when it is larger than this many samples; below, drawing one costs as much as counting all."""

_DEVICE_PIECE = 2**22  # bounds the scratch memory: 50 MiB, and 150 MiB where the histogram is exact


def flatten(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor as one dimension in the order of its memory, without a copy if it is dense.

    Complex tensors become their real and imaginary parts.
    """
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_contiguous():
        tensor = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    return tensor.reshape(-1)


def sample_positions(numel: int, jitter: torch.Tensor) -> torch.Tensor | None:
    """Draw one coordinate from each of `len(jitter)` equal strata of a tensor, without replacement.

    Args:
        numel: Number of entries of the tensor.
        jitter: Shape (size,), float64 in [0, 1): where in its stratum each coordinate lies.

    Returns:
        Shape (size,), int64, ascending; None for a tensor that is small enough to be taken whole.
    """
    size = jitter.numel()
    if numel <= SAMPLED_FROM * size:
        return None
    strata = torch.arange(size, dtype=torch.float64, device=jitter.device)
    return (strata + jitter).mul_(numel / size).long().clamp_(max=numel - 1)


def measure(
    flat: torch.Tensor, positions: torch.Tensor | None = None, before: torch.Tensor | None = None
) -> torch.Tensor:
    """Measure a tensor, or the difference of two, in as few passes as its device allows.

    Args:
        flat: Shape (n,), of any floating-point dtype; it is only read.
        positions: Where given, the coordinates that the histogram is made from (`sample_positions`); all otherwise.
        before: Shape (n,): where given, `flat - before` is measured, rounded to float32 (float64 for float64).

    Returns:
        Shape (WIDTH,), float64, on the device of `flat`.
    """
    if flat.numel() == 0:
        return torch.zeros(WIDTH, dtype=torch.float64, device=flat.device)
    exact = positions is None
    if flat.device.type == "cpu" and flat.dtype != torch.float64:
        result = measure_on_cpu(flat, exact, before)
    else:
        starts = range(0, flat.numel(), _DEVICE_PIECE)
        result = combine(
            torch.stack([measure_anywhere(_widen(flat, before, slice(i, i + _DEVICE_PIECE)), exact) for i in starts])
        )
    if positions is not None:
        sample = _widen(flat, before, positions)
        # On a CPU its own way of counting is the faster one for a sample too.
        on_cpu = sample.device.type == "cpu" and sample.dtype == torch.float32
        counts = measure_on_cpu(sample, True)[HISTOGRAM] if on_cpu else histogram(sample)
        # Weighted, so that it adds up to the exact number of non-zero finite entries.
        result[HISTOGRAM] = counts * ((result[FINITE] - result[ZEROS]) / counts.sum().clamp_min(1))
        result[SAMPLED] = sample.numel()
    return result


def combine(parts: torch.Tensor) -> torch.Tensor:
    """Add up the statistics of disjoint pieces: shape (pieces, ..., WIDTH) to (..., WIDTH)."""
    result = parts.sum(0)
    result[..., MAX] = parts[..., MAX].amax(0)
    smallest = parts[..., MIN]
    smallest = torch.where(smallest > 0, smallest, torch.inf).amin(0)
    result[..., MIN] = torch.where(smallest < torch.inf, smallest, 0.0)
    return result


def _widen(x: torch.Tensor, before: torch.Tensor | None, which: slice | torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x[which].to(dtype) if before is None else x[which].to(dtype) - before[which].to(dtype)
