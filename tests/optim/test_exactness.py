"""Decay of the right size, errors no larger than torch's, and a learning rate of 0 that changes nothing."""

import math

import pytest
import torch

from hf_proxadam.optim import AdamL2, ProxAdam, ScaleFreeAdamW, reference

from .cases import CASES, PATHS, Case, all_cases, registered_cases, set_lr

DECOUPLED = [
    case for case in CASES if case.cls is not AdamL2 and not {"proximal", "decay_schedule"} & case.options.keys()
]

# Capturable and differentiable steps refuse stochastic rounding.
ROUNDING_PATHS = [path for path in PATHS if path not in ("capturable", "differentiable")]


def total_decay(
    case: Case, product: float, dtype: torch.dtype, lr: float, steps: int = 400, **options: object
) -> float:
    """The decay that `steps` steps applied to 1e5 weights around 1, as a fraction of lr * weight_decay * steps.

    Measured as the difference between a run with and one without decay, over the same gradients, so that only what the
    decay did remains; its exact value is that of the reference's two equations.
    """
    count = 100_000
    ends = []
    for weight_decay in (product / lr, 0.0):
        generator = torch.Generator().manual_seed(0)
        param = torch.nn.Parameter((1 + torch.rand(count, generator=generator)).to(dtype))
        begin = param.detach().double()
        optimizer = case.make([param], lr=lr, weight_decay=weight_decay, **options)
        for _ in range(steps):
            param.grad = torch.randn(count, generator=generator).to(dtype)
            optimizer.step()
        ends.append(param.detach().double())
    shrink = 1 / (1 + product) if case.cls is ProxAdam else 1 - product
    # sum over steps of (weight at that step) * (1 - shrink), with the weights' own mean path
    mean_path = (begin.mean() + ends[1].mean()) / 2
    exact = mean_path * (1 - shrink**steps)
    return ((ends[1] - ends[0]).mean() / exact).item()


@pytest.mark.parametrize("product", [1e-9, 3e-8, 1e-5, 1e-1])
@pytest.mark.parametrize("case", [c for c in DECOUPLED if not c.options.get("amsgrad")], ids=lambda c: c.name)
def test_decay_has_the_right_size_in_float32(case: Case, product: float) -> None:
    lr = 1e-5 if product <= 1e-7 else 1e-4
    assert total_decay(case, product, torch.float32, lr) == pytest.approx(1, abs=0.01)


# The learning rate is so small that rounding the direction's part of the steps adds little to the rounded walks: the
# mean of 1e5 of them over 1600 steps is then known to better than 1 % of what a decay of 1e-6 per step amounts to.
@pytest.mark.parametrize(("product", "lr", "steps"), [(1e-6, 1e-6, 1600), (1e-4, 1e-3, 400)])
@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=() if p in ("pieces", "single") else pytest.mark.slow) for p in ROUNDING_PATHS]
)
@pytest.mark.parametrize("cls", [ProxAdam, ScaleFreeAdamW])
def test_decay_in_bf16_with_stochastic_rounding(cls: type, path: str, product: float, lr: float, steps: int) -> None:
    case = Case("", cls)
    ratio = total_decay(case, product, torch.bfloat16, lr, steps, rounding="stochastic", **PATHS[path])
    assert ratio == pytest.approx(1, abs=0.01)


def test_torch_loses_the_decay_that_we_apply() -> None:
    """The measurement itself can fail: torch's AdamW shows 0 where ours shows 1."""
    torch_case = Case("torch", torch.optim.AdamW)
    assert total_decay(torch_case, 1e-8, torch.float32, 1e-5) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("cls", "peer"), [(ProxAdam, "AdamW"), (ScaleFreeAdamW, "AdamW"), (AdamL2, "Adam")])
def test_error_over_ten_thousand_steps(cls: type, peer: str) -> None:
    """At most 4 times torch's error against the reference, with a warm-up and a cosine."""
    steps, count, peak, decay = 10_000, 24, 1e-3, 0.1
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(count, generator=generator)
    scales = 10.0 ** (torch.arange(count) % 6 - 3.0)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [
        cls([ours], lr=peak, eps=1e-8, weight_decay=decay),
        getattr(torch.optim, peer)([theirs], lr=peak, eps=1e-8, weight_decay=decay),
    ]
    # ProxAdam is another algorithm than AdamW: each is held against its own rule.
    rules = [cls.rule, "decoupled" if peer == "AdamW" else "coupled"]
    truths = [[reference.Coordinate(x) for x in start.double().tolist()] for _ in rules]
    for t in range(steps):
        lr = peak * min((t + 1) / 500, 0.5 + 0.5 * math.cos(math.pi * t / steps))
        grad = torch.randn(count, generator=generator) * scales
        for param, optimizer in zip((ours, theirs), optimizers, strict=True):
            param.grad = grad
            set_lr(optimizer, lr)
            optimizer.step()
        for rule, truth in zip(rules, truths, strict=True):
            for c, g in zip(truth, grad.double().tolist(), strict=True):
                reference.step(c, g, rule=rule, lr=lr, weight_decay=decay)
    errors = [
        (param.detach().double() - torch.tensor([c.x for c in truth], dtype=torch.float64))
        .square()
        .mean()
        .sqrt()
        .item()
        for param, truth in zip((ours, theirs), truths, strict=True)
    ]
    assert errors[0] <= 4 * errors[1], errors


@all_cases
@pytest.mark.parametrize("path", [pytest.param(p, marks=pytest.mark.slow if p == "compiled" else ()) for p in PATHS])
@pytest.mark.parametrize("as_tensor", [False, True], ids=["float", "tensor"])
def test_lr_0_changes_no_bit(case: Case, path: str, as_tensor: bool) -> None:
    values = torch.tensor([1.5, -2.0, 0.0, -0.0, 1e-40, 3e30])
    param = values.clone() if path == "differentiable" else torch.nn.Parameter(values.clone())
    optimizer = case.make([param], lr=0.1, **PATHS[path])
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0) if as_tensor else 0.0
    grads = [torch.zeros(6), torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0])]
    if path != "differentiable":  # autograd's 0 times infinity is no number
        grads.append(torch.tensor([torch.inf, -torch.inf, torch.nan, torch.inf, 1.0, torch.nan]))
    for grad in grads:
        param.grad = grad
        optimizer.step()
        assert torch.equal(param.detach().view(torch.int32), values.view(torch.int32))


@registered_cases
def test_gradients_are_never_written_to(case: Case) -> None:
    for path, options in PATHS.items():
        if path == "compiled":
            continue
        for dtype in (torch.float32, torch.bfloat16):
            for maximize in (False, True):
                param = torch.ones(5, dtype=dtype)
                optimizer = case.make([param], lr=0.1, maximize=maximize, **options)
                param.grad = torch.arange(5, dtype=dtype) - 2
                kept = param.grad.clone()
                optimizer.step()
                assert torch.equal(param.grad, kept), (path, dtype)


@registered_cases
def test_a_zero_gradient_without_decay_is_a_no_op(case: Case) -> None:
    param = torch.nn.Parameter(torch.tensor([1.5, -2.0, 0.0]))
    optimizer = case.make([param], lr=0.1, weight_decay=0.0)
    before = param.detach().clone()
    for _ in range(3):
        param.grad = torch.zeros(3)
        optimizer.step()
    assert torch.equal(param.detach(), before)
