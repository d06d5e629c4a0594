"""Scale-freeness, bit by bit, and what must not happen at the edges of float32."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_proxadam.optim.update import ratio_bound

from .cases import CASES, PATHS, REGISTERED, Case

SCALE_FREE = [case for case in CASES if case.scale_free and case.cls.rule != "coupled"]
COUPLED = [case for case in REGISTERED if case.cls.rule == "coupled"]
scale_free_cases = pytest.mark.parametrize("case", SCALE_FREE, ids=lambda case: case.name)
# Capturable and differentiable arithmetic is the single-tensor path's; the compiled one is its own, and slow to make.
fast_paths = pytest.mark.parametrize("path", ["pieces", "single", pytest.param("compiled", marks=pytest.mark.slow)])


def trajectory(case: Case, path: str, factors: torch.Tensor, seed: int = 0, steps: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    param = torch.nn.Parameter(torch.randn(factors.shape, generator=generator))
    optimizer = case.make([param], lr=0.01, **PATHS[path])
    seen = []
    for _ in range(steps):
        grad = 1e-2 * torch.randn(factors.shape, generator=generator)
        grad[torch.rand(factors.shape, generator=generator) < 0.1] = 0
        param.grad = grad * factors
        optimizer.step()
        seen.append(param.detach().clone())
    return torch.stack(seen)


@scale_free_cases
@fast_paths
@settings(max_examples=15, deadline=None, derandomize=True)
@given(exponents=st.lists(st.integers(-90, 90), min_size=40, max_size=40), seed=st.integers(0, 10**6))
def test_powers_of_two_change_no_bit(case: Case, path: str, exponents: list[int], seed: int) -> None:
    factors = torch.tensor([2.0**e for e in exponents])
    plain = trajectory(case, path, torch.ones(40), seed)
    scaled = trajectory(case, path, factors, seed)
    assert torch.equal(plain.view(torch.int32), scaled.view(torch.int32))


@scale_free_cases
def test_large_tensors_too(case: Case) -> None:
    """Over slices and gathered tensors, where vector code does the work."""
    factors = 2.0 ** torch.randint(-90, 91, (2**17 + 5,), generator=torch.Generator().manual_seed(3)).float()
    plain = trajectory(case, "pieces", torch.ones_like(factors), steps=3)
    assert torch.equal(plain, trajectory(case, "pieces", factors, steps=3))


@pytest.mark.parametrize("case", COUPLED, ids=lambda case: case.name)
def test_the_coupled_rule_is_not_scale_free(case: Case) -> None:
    factors = torch.full((40,), 2.0**10)
    assert not torch.equal(trajectory(case, "pieces", torch.ones(40)), trajectory(case, "pieces", factors))


@scale_free_cases
@fast_paths
def test_sign_flips_mirror_the_step(case: Case, path: str) -> None:
    """From 0 and without decay, gradients of the other sign walk the mirrored path."""
    paths = []
    for sign in (1, -1):
        param = torch.nn.Parameter(torch.zeros(50))
        optimizer = case.make([param], lr=0.01, weight_decay=0.0, **PATHS[path])
        generator = torch.Generator().manual_seed(1)
        for _ in range(10):
            param.grad = sign * torch.randn(50, generator=generator)
            optimizer.step()
        paths.append(sign * param.detach())
    assert torch.equal(*paths)


@scale_free_cases
@pytest.mark.parametrize("path", [pytest.param(p, marks=pytest.mark.slow if p == "compiled" else ()) for p in PATHS])
def test_edges_of_float32(case: Case, path: str) -> None:
    """Subnormals, the largest numbers, exact zeros and a value after long zeros: finite, and no step past the bound."""
    tiny, huge = 2.0**-149, 3e38
    rows = [
        [0.0] * 40,
        [tiny] * 40,
        [huge] * 40,
        [huge, -huge] * 20,
        [0.0] * 30 + [huge] + [0.0] * 9,
        [0.0] * 30 + [tiny] + [0.0] * 9,
        [huge] + [tiny] * 39,
        [tiny] + [huge] * 39,
        [1e-38, 1e38] * 20,
        [1e-30] + [0.0] * 39,
    ]
    grads = torch.tensor(rows)
    param = torch.zeros(len(rows)) if path == "differentiable" else torch.nn.Parameter(torch.zeros(len(rows)))
    optimizer = case.make([param], lr=0.5, weight_decay=0.0, **PATHS[path])
    sign = -1 if case.options.get("maximize") else 1
    previous = torch.zeros(len(rows))
    for t in range(40):
        param.grad = grads[:, t].clone()
        optimizer.step()
        now = param.detach().clone()
        assert now.isfinite().all(), (t, now)
        bias = math.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1))
        # The bound, the rounding of the step, and that of the weight it is added to.
        allowed = 0.5 * bias * ratio_bound(0.9, 0.999) * (1 + 1e-5) + 1e-6 * now.abs().max()
        assert ((now - previous).abs() <= allowed).all(), t
        previous = now
    assert param[0] == 0, "a coordinate whose gradient is always 0 must not move"
    assert sign * param[2].item() < 0


@scale_free_cases
def test_zeros_for_ten_thousand_steps(case: Case) -> None:
    param = torch.nn.Parameter(torch.zeros(3))
    optimizer = case.make([param], lr=0.5, weight_decay=0.0)
    param.grad = torch.tensor([0.0, 1.0, 1e-30])
    optimizer.step()
    for _ in range(10_000):
        param.grad.zero_()
        optimizer.step()
    before = param.detach().clone()
    param.grad = torch.tensor([1e-20, 1e-20, 1e20])
    optimizer.step()
    assert param.isfinite().all()
    assert ((param - before).abs() <= 0.5 * ratio_bound(0.9, 0.999)).all()
    assert param[0] != 0


@scale_free_cases
@pytest.mark.parametrize("path", [pytest.param(p, marks=pytest.mark.slow if p == "compiled" else ()) for p in PATHS])
def test_a_nan_stays_visible(case: Case, path: str) -> None:
    param = torch.zeros(2) if path == "differentiable" else torch.nn.Parameter(torch.zeros(2))
    optimizer = case.make([param], **PATHS[path])
    param.grad = torch.tensor([float("nan"), 1.0])
    optimizer.step()
    assert param[0].isnan()
    assert param[1].isfinite()


@pytest.mark.parametrize(
    ("betas", "bound"), [((0.9, 0.999), 7.2703), ((0.9, 0.8), math.inf), ((0.0, 0.0), 1.0), ((0.0, 0.75), 2.0)]
)
def test_ratio_bound(betas: tuple[float, float], bound: float) -> None:
    assert ratio_bound(*betas) == pytest.approx(bound, rel=1e-4)


def test_ratio_bound_is_reached_and_not_passed() -> None:
    """The worst gradients are g_k = (b1/b2)^(n-k): their ratio comes to the bound."""
    b1, b2 = 0.9, 0.99
    m = v = 0.0
    for k in range(400):
        g = (b1 / b2) ** (400 - k)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    assert m / math.sqrt(v) == pytest.approx(ratio_bound(b1, b2), rel=1e-6)
