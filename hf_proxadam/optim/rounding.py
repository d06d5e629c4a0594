"""Parameters in bf16 and fp16: the dtype of their moments, and rounding that is right on average."""

import torch
from torch import Tensor


def is_low_precision(dtype: torch.dtype) -> bool:
    """Whether moments of such parameters are kept in float32."""
    return dtype in (torch.bfloat16, torch.float16)


def moment_dtype(param: Tensor) -> torch.dtype:
    """The dtype of a parameter's moments, and of the arithmetic."""
    return torch.float32 if is_low_precision(param.dtype) else param.dtype


def noise_for(param: Tensor, generators: dict[torch.device, torch.Generator] | None) -> Tensor | None:
    """The random bits that [`stochastic_round`] takes; None where the parameter is rounded to nearest.

    Args:
        param: the parameter or a piece of it, on the CPU or a device.
        generators: one for each device; None to round to nearest.
    """
    if generators is None or not is_low_precision(param.dtype):
        return None
    return torch.randint(
        0, 2**16, param.shape, dtype=torch.int32, device=param.device, generator=generators[param.device]
    )


def stochastic_round(x: Tensor, dtype: torch.dtype, noise: Tensor) -> Tensor:
    """Round float32 `x` to bf16 or fp16 so that the expected value of the result is `x`.

    Each value goes to one of its two neighbours, with probability proportional to the closeness of the other. A value
    that `dtype` holds exactly stays; NaN, infinities and values past the largest finite one round as in `Tensor.to`.
    In the subnormal range of fp16 the probabilities are multiples of 2^-13.

    Args:
        x: float32, any shape.
        dtype: torch.bfloat16 or torch.float16.
        noise: int32 of the shape of `x`, uniform over 0 .. 2^16 - 1.
    """
    if dtype is torch.bfloat16:
        # bf16 is the upper half of a float32: add less than one unit of it, and cut the lower half off.
        rounded = ((x.view(torch.int32) + noise) & -65536).view(torch.float32)
    else:
        # fp16 keeps 10 bits of fraction above 2^-14, and has a fixed spacing of 2^-24 below.
        exponent = torch.frexp(x).exponent.clamp_min(-13)
        spacing = torch.ldexp(torch.ones_like(x), exponent - 11)
        rounded = (x / spacing + (noise >> 3) * 2.0**-13).floor() * spacing
    return torch.where(x.abs() <= torch.finfo(dtype).max, rounded, x).to(dtype)
