"""ProxAdam: AdamW's proximal original."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .adam_family import AdamFamily
from .proximal import ProximalMap


class ProxAdam(AdamFamily):
    r"""Adam with an exact proximal step on the regulariser.

    With m_hat, v_hat the bias-corrected moments of the gradient, u = m_hat / (sqrt(v_hat) + eps), and eta from
    `decay_schedule`:

        x <- prox_{eta lambda R}(x - lr u),     for l2:  x <- (x - lr u) / (1 + eta lambda)

    AdamW's x <- (1 - eta lambda) x - lr u is the first-order form of this. The step is taken with one rounding,
    x <- x - lr/(1 + eta lambda) (u + (eta lambda / lr) x), so that decays far below the precision of x add up.

    With `eps=0` the update is scale-free (see [`ScaleFreeAdamW`]).

    Args:
        params: parameters, (name, parameter) pairs, or dicts that define groups. A group may set every option for
            itself (`foreach` and the like included, but not `differentiable`).
        lr: learning rate, >= 0; a float, or a one-element tensor (read at every step, unless `capturable`).
        betas: coefficients b1, b2 of the running averages of gradient and squared gradient, each in [0, 1).
        eps: added to sqrt(v_hat), >= 0, in the unit of the gradient. 0 makes the update scale-free.
        weight_decay: lambda >= 0. With `decay_schedule="lr"` it is AdamW's number in torch.
        amsgrad: divide by the largest second moment so far.
        decay_schedule: the factor eta: "lr" (eta = lr, torch's convention), "relative" (lr / initial_lr, the paper's)
            or "lr_squared" (lr^2 / initial_lr). `initial_lr` is the group's own: its lr when it was added, kept in
            `param_groups` and in checkpoints.
        proximal: the regulariser R: "l2", "l1", "elastic_net", "group_lasso" (rows), "l2_start", or a
            [`ProximalMap`].
        l1_ratio: share of the l1 norm in "elastic_net", in [0, 1] (default 0.5).
        start: for "l2_start": "current" (the weights before the first step), or one tensor for each parameter.
        maximize: ascend instead of descending.
        foreach: None or True: in cache-sized pieces (the default); False: one tensor at a time.
        capturable: the step reads no number from the device (CUDA graphs).
        differentiable: autograd goes through the step.
        fused: reserved for the GPU kernel; True is refused until there is one.
        compile: run the body through `torch.compile`.
        rounding: how bf16 and fp16 parameters are rounded: "nearest", or "stochastic", which is unbiased. Arithmetic
            and moments are float32 in either case.
        seed: of stochastic rounding, >= 0. Bits depend on seed, step and group alone: a resumed run draws the same.

    Raises:
        ValueError: an option outside its range, of the wrong type, or impossible in combination; before any change.

    Example:
        >>> import torch
        >>> from hf_proxadam.optim import ProxAdam
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = ProxAdam(model.parameters(), lr=1e-3, weight_decay=0.1)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()

    Source: Zhuang et al., TMLR 2022 (arXiv 2202.00089), Algorithm 2 (AdamProx) and equation 5. State and memory:
    [`AdamFamily`].
    """

    rule = "proximal"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        decay_schedule: str = "lr",
        proximal: str | ProximalMap = "l2",
        l1_ratio: float | None = None,
        start: str | Iterable[Tensor] | None = None,
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
