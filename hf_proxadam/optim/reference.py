r"""The update in float64, one coordinate at a time, written for reading: what the tests hold every path against.

It follows the equations of the paper's Algorithms 1 and 2 in their order and shares no code with `update.py`. Python's
floats are float64; none of the rearrangements that float32 needs are made here.
"""

import math
from dataclasses import dataclass


@dataclass
class Coordinate:
    """One coordinate of a parameter and its state.

    Attributes:
        x: the weight.
        m: first moment.
        v: second moment.
        v_max: the largest second moment so far (amsgrad).
        t: number of steps.
        start: the weight that l2_start pulls towards.
    """

    x: float
    m: float = 0.0
    v: float = 0.0
    v_max: float = 0.0
    t: int = 0
    start: float = 0.0


def decay_factor(schedule: str, lr: float, initial_lr: float) -> float:
    """Eta: lr, lr / initial_lr or lr^2 / initial_lr."""
    return {"lr": lr, "relative": lr / initial_lr, "lr_squared": lr**2 / initial_lr}[schedule]


def proximal_map(name: str, x: float, strength: float, start: float = 0.0, l1_ratio: float = 0.5) -> float:
    """argmin_y strength R(y) + (y - x)^2 / 2 for one coordinate (of group_lasso: a row of one)."""
    if name == "l2":
        return x / (1 + strength)
    if name == "l2_start":
        return (x + strength * start) / (1 + strength)
    if name in ("l1", "group_lasso"):
        l1_ratio = 1.0
    threshold, shrink = strength * l1_ratio, strength * (1 - l1_ratio)
    return math.copysign(max(abs(x) - threshold, 0.0), x) / (1 + shrink)


def step(
    c: Coordinate,
    g: float,
    *,
    rule: str,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    decay_schedule: str = "lr",
    initial_lr: float | None = None,
    direction: str = "ratio",
    amsgrad: bool = False,
    maximize: bool = False,
    proximal: str = "l2",
    l1_ratio: float = 0.5,
) -> None:
    """Do one step on one coordinate; `rule` is "coupled", "decoupled" or "proximal", the rest as in the optimizers."""
    beta1, beta2 = betas
    eta = decay_factor(decay_schedule, lr, lr if initial_lr is None else initial_lr)
    if maximize:
        g = -g
    if rule == "coupled":
        g = g + weight_decay * c.x

    c.t += 1
    c.m = beta1 * c.m + (1 - beta1) * g
    c.v = beta2 * c.v + (1 - beta2) * g**2
    c.v_max = max(c.v_max, c.v)
    m_hat = c.m / (1 - beta1**c.t)
    v_hat = (c.v_max if amsgrad else c.v) / (1 - beta2**c.t)

    if direction == "atan2":
        u = math.atan2(m_hat, math.sqrt(v_hat))
    elif eps == 0:
        u = m_hat / math.sqrt(v_hat) if v_hat > 0 else 0.0
    else:
        u = m_hat / (math.sqrt(v_hat) + eps)

    if rule == "coupled":
        c.x = c.x - lr * u
    elif rule == "decoupled":
        c.x = (1 - eta * weight_decay) * c.x - lr * u
    else:
        c.x = proximal_map(proximal, c.x - lr * u, eta * weight_decay, c.start, l1_ratio)
