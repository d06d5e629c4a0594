"""AdamL2: Adam on the regularised loss, the baseline that AdamW is compared with."""

import warnings
from typing import Any

from torch import Tensor

from .adam_family import AdamFamily


class AdamL2(AdamFamily):
    r"""Adam with the l2 regulariser's gradient added to the loss's: weight decay is coupled, and not scale-free.

        g <- g + lambda x,     x <- x - lr m_hat / (sqrt(v_hat) + eps)

    `torch.optim.Adam(weight_decay=lambda)` is the same algorithm.

    Args:
        params: see [`ProxAdam`].
        lr: see [`ProxAdam`].
        betas: see [`ProxAdam`].
        eps: see [`ProxAdam`].
        weight_decay: lambda >= 0, in units of gradient per weight (default 0, as in `torch.optim.Adam`).
        amsgrad: see [`ProxAdam`].
        decay_schedule: taken so that one configuration fits all three classes. The coupled rule has no decay factor:
            any value but "lr" warns that it changes nothing.
        maximize: see [`ProxAdam`], as all that follow. lambda x is added after the sign of g was changed, as in torch.
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
        >>> from hf_proxadam.optim import AdamL2
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = AdamL2([weight], lr=0.5, weight_decay=0.1)
        >>> weight.grad = torch.zeros(1)
        >>> optimizer.step()  # the decay alone moves by lr, however small lambda is
        >>> round(weight.item(), 6)
        0.5

    Source: Kingma and Ba, ICLR 2015 (arXiv 1412.6980); the coupling as in Zhuang et al., TMLR 2022 (arXiv 2202.00089),
    Algorithm 1. State and memory: [`AdamFamily`].
    """

    rule = "coupled"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        decay_schedule: str = "lr",
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
        if decay_schedule != "lr":
            warnings.warn(
                f"AdamL2 adds weight_decay times the weight to the gradient, where no decay factor enters: "
                f"decay_schedule={decay_schedule!r} changes nothing",
                stacklevel=2,
            )
