r"""The update of the Adam family, written once over plain tensors.

Every execution path (one tensor at a time, cache-sized pieces, `torch.compile`) calls [`adam_update`]; nothing else in
the package changes a parameter. With gradient g, moments m and v, step t, learning rate lr and lambda' = lambda eta/lr:

    coupled (Adam-l2)   g <- g + lambda x
    all                 m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
                        u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    coupled             x <- x - lr u
    decoupled (AdamW)   x <- x - lr (u + lambda' x)
    proximal (l2)       x <- x - lr/(1 + lr lambda') (u + lambda' x)  =  (x - lr u) / (1 + eta lambda)

Each parameter is written once, with one rounding: a separate `x *= 1 - lr lambda` is lost altogether in float32 once
lr lambda < 3e-8. Nothing divides by lr, so lr = 0 is the identity.

**Scale-free** (eps = 0). The second moment is kept as its root r = sqrt(v), accumulated with `hypot`, so that squares
of small and large gradients neither underflow nor overflow; u is 0 where r is 0, and |m|/r is held inside the bound
that exact arithmetic gives it ([`ratio_bound`]). Multiplying a coordinate's gradients by a power of two multiplies m
and r by the same power, exactly, and leaves u as it was, bit by bit.

**On the CPU**, with eps > 0 and neither amsgrad nor another map than l2, moments and direction are computed by torch's
own kernel of Adam (`_step_by_kernel`); these are the same equations in a third of the passes over memory.

Source: Zhuang, Liu, Cutkosky, Orabona, "Understanding AdamW through Proximal Methods and Scale-Freeness", TMLR 2022
(arXiv 2202.00089), Algorithms 1 and 2 and section 4. `atan2`: Everett et al., "Scaling Exponents Across
Parameterizations and Optimizers", ICML 2024 (arXiv 2407.05872), without its two constants.
"""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .rounding import stochastic_round

if TYPE_CHECKING:
    from .proximal import ProximalMap

DECAY_SCHEDULES = ("lr", "relative", "lr_squared")


@dataclass(frozen=True, kw_only=True)
class Form:
    """What is fixed about an update: which equations, not which numbers. One compiled kernel per form.

    Attributes:
        rule: "coupled", "decoupled" or "proximal": where the regulariser enters.
        scale_free: eps = 0; the second moment is stored as its root.
        atan2: the direction is atan2(m_hat, sqrt(v_hat)); needs `scale_free`.
        bounded: b1^2 < b2, so that |m|/sqrt(v) has the bound of [`ratio_bound`].
        amsgrad: divide by the largest second moment so far.
        maximize: ascend, i.e. use -g.
        decays: weight_decay != 0.
        proximal: the proximal map; None is l2, which the body does itself.
        functional: no `out=` and no in-place work on scratch (autograd and the compiler need this).
        differentiable: gradients flow through the step.
    """

    rule: str
    scale_free: bool = False
    atan2: bool = False
    bounded: bool = True
    amsgrad: bool = False
    maximize: bool = False
    decays: bool = False
    proximal: "ProximalMap | None" = None
    functional: bool = False
    differentiable: bool = False


class Betas(NamedTuple):
    """The coefficients of the two averages, rounded so that they add up to one in the arithmetic that uses them.

    With b2 rounded and 1 - b2 not, a constant gradient would settle at v = g^2 (1 + 1e-5) in float32. Tensors where a
    differentiable step was given tensors.

    Attributes:
        beta1: coefficient of the first moment.
        beta2: coefficient of the second moment, a float32 number for float32 arithmetic.
        root_beta2: its root, for the second moment kept as a root; `beta2` is then this, squared.
        bound: the bound of |m|/sqrt(v) (see [`ratio_bound`]).
    """

    beta1: float | Tensor
    beta2: float | Tensor
    root_beta2: float | Tensor
    bound: float


class Scalars(NamedTuple):
    """The numbers of one step. All but the betas are floats, or 0-d tensors where a step must not read them.

    What can be computed once for all coordinates stands here: a compiled loop would divide anew for each of them.

    Attributes:
        betas: see [`Betas`].
        step: t, counted from 1.
        lr: the learning rate of this step.
        eps: as given; 0 where the update is scale-free.
        decay: lambda' = lambda eta / lr, the strength of the regulariser in units of the step size.
        floor: eps sqrt(1 - b2^t), what is added to sqrt(v), which is not corrected for bias itself.
        bias: sqrt(1 - b2^t) / (1 - b1^t): turns m / (sqrt(v) + floor) into the direction u.
        size: what u + lambda' x is multiplied with: lr, or lr / (1 + lr lambda') for the proximal step.
        move: size bias, what u / bias is multiplied with.
        pull: lambda' / bias, what is added of x to u / bias.
    """

    betas: Betas
    step: float | Tensor
    lr: float | Tensor
    eps: float | Tensor
    decay: float | Tensor
    floor: float | Tensor
    bias: float | Tensor
    size: float | Tensor
    move: float | Tensor
    pull: float | Tensor


def ratio_bound(beta1: float, beta2: float) -> float:
    r"""The largest |m|/sqrt(v) that any sequence of gradients gives, before bias correction.

    By the Cauchy-Schwarz inequality, (1 - b1) / sqrt((1 - b2) (1 - b1^2/b2)) where b1^2 < b2, else infinite.
    7.27 for (0.9, 0.999).
    """
    if beta1 == 0:
        return 1 / math.sqrt(1 - beta2)
    if beta1**2 >= beta2:
        return math.inf
    return (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2))


@functools.lru_cache(maxsize=256)
def rounded_betas(beta1: float, beta2: float, dtype: torch.dtype, root: bool) -> Betas:
    """The coefficients as arithmetic in `dtype` sees them; `root` where the second moment is kept as its root."""
    bound = ratio_bound(beta1, beta2)
    if root:
        root_beta2 = torch.tensor(math.sqrt(beta2), dtype=dtype).item()
        return Betas(beta1, root_beta2**2, root_beta2, bound)
    beta2 = torch.tensor(beta2, dtype=dtype).item()
    return Betas(beta1, beta2, math.sqrt(beta2), bound)


def decay_factor(schedule: str, lr: float | Tensor, initial_lr: float) -> float | Tensor:
    """eta/lr of this step: 1 for "lr", 1/initial_lr for "relative", lr/initial_lr for "lr_squared"."""
    if schedule == "lr":
        return 1.0
    return 1.0 / initial_lr if schedule == "relative" else lr / initial_lr


def step_scalars(
    betas: Betas, step: float | Tensor, lr: float | Tensor, eps: float, decay: float | Tensor, form: Form
) -> Scalars:
    """The numbers of step `step` (counted from 1); `decay` is lambda'. A tensor `step` (float64) gives tensors."""
    root = (1 - betas.beta2**step) ** 0.5
    bias = root / (1 - betas.beta1**step)
    size = lr / (1 + lr * decay) if form.rule == "proximal" else lr
    return Scalars(betas, step, lr, eps, decay, eps * root, bias, size, size * bias, decay / bias)


def adam_update(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    second: Tensor,
    max_second: Tensor | None,
    start: Tensor | None,
    noise: Tensor | None,
    scalars: Scalars,
    form: Form,
) -> None:
    """Do one step on one tensor (or on one piece of it: all but row-wise proximal maps is elementwise).

    Args:
        param: the parameter, any shape, real; written once.
        grad: its gradient, same shape; never written to.
        exp_avg: first moment m, same shape, in the dtype of the arithmetic (float32 or float64); updated.
        second: second moment v, or its root where `form.scale_free`; like `exp_avg`.
        max_second: the largest `second` so far, with amsgrad; else None.
        start: the weights that l2_start pulls towards; else None.
        noise: int32 random bits for stochastic rounding into bf16 or fp16; None rounds to nearest.
        scalars: the numbers of this step.
        form: which equations.
    """
    lr, dtype = scalars.lr, exp_avg.dtype
    x, g = param.to(dtype), grad.to(dtype)
    m, s, largest = exp_avg, second, max_second
    if torch_has_a_kernel(form, scalars) and all(t.is_cpu and t.is_contiguous() for t in (x, g, m, s)):
        step = torch.mul(x, -scalars.size * scalars.decay) if regularised(form) else x
        _step_by_kernel([step], [g], [m], [s], scalars, form)
        x_new = x if step is x else x.add_(step)
    else:
        if form.differentiable:  # autograd keeps what it is given, and all of this is overwritten below
            x, m, s = x.clone(), m.clone(), s.clone()
            largest = None if largest is None else largest.clone()
        if form.maximize:
            g = -g
        if form.rule == "coupled" and form.decays:
            g = _axpy(g, x, scalars.decay)
        m, s = _averages(m, s, g, scalars.betas, form)
        used = s
        if largest is not None:
            used = torch.maximum(largest, s, out=None if form.functional else largest)
        if form.functional:
            exp_avg.copy_(m)
            second.copy_(s)
            if max_second is not None:
                max_second.copy_(used)
        if not isinstance(lr, Tensor) and lr == 0:
            return  # the identity, down to the sign of a zero
        x_new = _step(x, m, used, scalars, start, form)
    if x_new is not param:
        param.copy_(x_new if noise is None else stochastic_round(x_new, param.dtype, noise))


def adam_update_many(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    seconds: list[Tensor],
    scalars: Scalars,
    form: Form,
) -> None:
    """[`adam_update`] of many small tensors in one call of torch's kernel.

    Args:
        params: 1-d tensors, contiguous, on the CPU, all in the dtype of the arithmetic.
        grads: like `params`, each of the size of its parameter.
        exp_avgs: likewise.
        seconds: likewise.
        scalars: the numbers of this step.
        form: which equations; [`torch_has_a_kernel`] holds.
    """
    if not regularised(form):
        _step_by_kernel(params, grads, exp_avgs, seconds, scalars, form)
        return
    sizes = list(map(Tensor.numel, params))
    steps = torch.unsafe_split_with_sizes(torch.cat(params).mul_(-scalars.size * scalars.decay), sizes)
    _step_by_kernel(list(steps), grads, exp_avgs, seconds, scalars, form)
    torch._foreach_add_(params, steps)


def torch_has_a_kernel(form: Form, scalars: Scalars) -> bool:
    """Whether torch's vectorised CPU kernel of Adam computes moments and direction of this form, with these numbers."""
    return (
        not (form.scale_free or form.functional or form.amsgrad)
        and form.proximal is None
        and isinstance(scalars.lr, float)
        and isinstance(scalars.step, float)
        and scalars.lr > 0
    )


def regularised(form: Form) -> bool:
    """Whether the regulariser stands beside the direction, and not in the gradient."""
    return form.decays and form.rule != "coupled"


def _step_by_kernel(
    targets: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    seconds: list[Tensor],
    scalars: Scalars,
    form: Form,
) -> None:
    """The common forms with a third of the passes over memory.

    The kernel subtracts lr u from `targets`. They are the parameters themselves; or, where the regulariser has a part
    of its own in the step, scratch that holds this part: the whole step is then there, to be added to the parameters
    and rounded once, as everywhere. What is coupled into the gradient the kernel knows itself.
    """
    torch._fused_adam_(
        targets,
        grads,
        exp_avgs,
        seconds,
        [],
        [torch.tensor(scalars.step, dtype=torch.float32)] * len(grads),
        lr=float(scalars.size),
        beta1=float(scalars.betas.beta1),
        beta2=float(scalars.betas.beta2),
        weight_decay=float(scalars.decay) if form.decays and form.rule == "coupled" else 0.0,
        eps=float(scalars.eps),
        amsgrad=False,
        maximize=form.maximize,
    )
    if not regularised(form):  # these are parameters, and the kernel tells autograd nothing of its having changed them
        for target in targets:
            torch.autograd.graph.increment_version(target)


def _averages(m: Tensor, s: Tensor, g: Tensor, betas: Betas, form: Form) -> tuple[Tensor, Tensor]:
    """The moments of this step: in place, or as new tensors where `form.functional`."""
    to_m, to_s = (None, None) if form.functional else (m, s)
    if form.scale_free:
        # Not lerp: g - m overflows for gradients of opposite sign near the largest float.
        m = _axpy(torch.mul(m, betas.beta1, out=to_m), g, 1 - betas.beta1, out=to_m)
        return m, _hypot(torch.mul(s, betas.root_beta2, out=to_s), g * (1 - betas.beta2) ** 0.5, out=to_s)
    m = torch.lerp(m, g, 1 - betas.beta1, out=to_m)
    s = torch.mul(s, betas.beta2, out=to_s)
    if isinstance(betas.beta2, Tensor):
        return m, s + g * g * (1 - betas.beta2)
    return m, torch.addcmul(s, g, g, value=1 - betas.beta2, out=to_s)


def _step(x: Tensor, m: Tensor, s: Tensor, scalars: Scalars, start: Tensor | None, form: Form) -> Tensor:
    """The new value of `x`: in `x` itself, or, where `form.functional` or a proximal map is given, in a new tensor."""
    to_x = None if form.functional else x
    if form.scale_free:
        d = _scale_free_direction(m, s, scalars, form)
    else:
        d = s.sqrt()
        to_d = None if form.functional else d
        d = torch.div(m, torch.add(d, scalars.floor, out=to_d), out=to_d)

    to_d = None if form.functional else d
    if form.proximal is not None:
        move = torch.mul(d, scalars.bias * scalars.lr, out=to_d)
        away = form.proximal.displacement(x, move, scalars.lr * scalars.decay, start)
        return x + _none_at_lr_0(-away, scalars.lr, form) if _must_not_read(scalars.lr) else x - away
    if regularised(form):
        d = _axpy(d, x, scalars.pull, out=to_d)
    if _must_not_read(scalars.lr):
        d = _none_at_lr_0(d * -scalars.move, scalars.lr, form)
        return torch.add(x, d, out=to_x)
    return _axpy(x, d, -scalars.move, out=to_x)


def _must_not_read(lr: float | Tensor) -> bool:
    """Whether a step is to find out on the device that lr = 0, the identity; compiled steps are not taken then."""
    return isinstance(lr, Tensor) and not torch.compiler.is_compiling()


def _none_at_lr_0(step: Tensor, lr: float | Tensor, form: Form) -> Tensor:
    """`step`; and where lr = 0, whatever it is, -0, which added to any number gives that number. Gradients flow on."""
    assert isinstance(lr, Tensor)
    return torch.where(lr == 0, -(step.detach() - step) if form.differentiable else -0.0, step)


def _scale_free_direction(m: Tensor, root: Tensor, scalars: Scalars, form: Form) -> Tensor:
    """The direction u divided by `bias`, in a new tensor."""
    # Where r = 0 all gradients were 0 and so is m: 0 / tiny = 0. A NaN stays a NaN. Below the smallest normal number
    # the ratio shrinks instead of growing without bound.
    d = root.clamp_min(torch.finfo(root.dtype).tiny)
    to_d = None if form.functional else d
    if form.atan2:
        unbias = 1 / scalars.bias
        return torch.mul(torch.atan2(m, torch.mul(d, unbias, out=to_d), out=to_d), unbias, out=to_d)
    d = torch.div(m, d, out=to_d)
    return torch.clamp(d, -scalars.betas.bound, scalars.betas.bound, out=to_d) if form.bounded else d


def _hypot(a: Tensor, b: Tensor, out: Tensor | None) -> Tensor:
    """sqrt(a^2 + b^2) for a >= 0, without squaring anything but a ratio of at most 1."""
    if not torch.compiler.is_compiling():
        return torch.hypot(a, b, out=out)
    b = b.abs()  # the same in operations that the compiler can fuse
    larger, smaller = torch.maximum(a, b), torch.minimum(a, b)
    ratio = smaller / larger.clamp_min(torch.finfo(a.dtype).tiny)
    return larger * torch.sqrt(1 + ratio * ratio)


def _axpy(y: Tensor, x: Tensor, a: float | Tensor, out: Tensor | None = None) -> Tensor:
    """Y + a x, in one pass where `a` is a number. `out` is None or `y`."""
    if not isinstance(a, Tensor):
        return torch.add(y, x, alpha=a) if out is None else y.add_(x, alpha=a)
    return y + x * a if out is None else y.add_(x * a)
