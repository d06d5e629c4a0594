"""ScaleFreeAdamW: AdamW without epsilon."""

from typing import Any

from torch import Tensor

from .adam_family import AdamFamily


class ScaleFreeAdamW(AdamFamily):
    r"""AdamW whose updates do not change when any coordinate's gradients are multiplied by a constant.

    With eps = 0 (the default), m_hat and v_hat the bias-corrected moments, and eta from `decay_schedule`:

        direction="ratio"   u = m_hat / sqrt(v_hat), and 0 where v = 0
        direction="atan2"   u = atan2(m_hat, sqrt(v_hat)), in (-pi/2, pi/2)
        x <- (1 - eta lambda) x - lr u, with one rounding: x <- x - lr (u + (eta lambda / lr) x)

    For powers of two the invariance is exact, bit by bit, for float32 gradients of magnitudes from 2^-97 to 2^83: the
    second moment is kept as its root. |m| / sqrt(v) is held inside its bound in exact arithmetic,
    (1 - b1) / sqrt((1 - b2)(1 - b1^2/b2)), where b1^2 < b2; a NaN gradient stays visible as NaN.

    Args:
        params: see [`ProxAdam`].
        lr: see [`ProxAdam`].
        betas: see [`ProxAdam`]; b1^2 >= b2 with eps = 0 warns that the bound is lost.
        eps: 0, or > 0 for ordinary AdamW with one rounding.
        weight_decay: lambda >= 0, decoupled.
        amsgrad: see [`ProxAdam`].
        decay_schedule: see [`ProxAdam`].
        direction: "ratio" or "atan2" (which has no eps).
        maximize: see [`ProxAdam`], as all that follow.
        foreach: None or True: pieces; False: one tensor at a time.
        capturable: for CUDA graphs.
        differentiable: autograd goes through the step.
        fused: True is refused until there is a kernel.
        compile: through `torch.compile`.
        rounding: "nearest" or "stochastic", for bf16 and fp16 parameters.
        seed: of stochastic rounding.

    Raises:
        ValueError: an option outside its range, of the wrong type, or impossible in combination; before any change.

    Example:
        >>> import torch
        >>> from hf_proxadam.optim import ScaleFreeAdamW
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = ScaleFreeAdamW([weight], lr=0.5, weight_decay=0.0)
        >>> weight.grad = torch.tensor([1e-30, -1e30])
        >>> optimizer.step()
        >>> [round(x, 6) for x in weight.tolist()]
        [-0.5, 0.5]

    Source: Zhuang et al., TMLR 2022 (arXiv 2202.00089), Algorithm 1 and section 4; "atan2": Everett et al., ICML 2024
    (arXiv 2407.05872). State and memory: [`AdamFamily`].
    """

    rule = "decoupled"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 0.0,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        decay_schedule: str = "lr",
        direction: str = "ratio",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compile: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
    ) -> None:
        options = {k: v for k, v in locals().items() if k not in ("self", "params", "__class__")}
        super().__init__(params, options)
