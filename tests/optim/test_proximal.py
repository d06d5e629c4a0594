"""Each proximal map against its definition: argmin_y s R(y) + |y - x|^2 / 2."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from hf_proxadam.optim import L1, L2, ElasticNet, GroupLasso, L2Start, ProxAdam, ProximalMap

MAPS = [L2(), L1(), ElasticNet(0.3), GroupLasso(), L2Start()]
all_maps = pytest.mark.parametrize("prox", MAPS, ids=lambda p: p.name)
START = torch.tensor([[0.3, -0.2, 1.0], [0.0, 2.0, -1.0]], dtype=torch.float64)


def regulariser(prox: ProximalMap, y: torch.Tensor) -> torch.Tensor:
    if isinstance(prox, GroupLasso):
        return y.norm(dim=1).sum()
    if isinstance(prox, ElasticNet):
        return prox.l1_ratio * y.abs().sum() + (1 - prox.l1_ratio) / 2 * y.square().sum()
    return ((y - (START if isinstance(prox, L2Start) else 0)).square().sum()) / 2


def matrices(seed: int) -> torch.Tensor:
    return 2 * torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@all_maps
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), strength=st.sampled_from([1e-3, 0.1, 0.7, 3.0]))
def test_is_the_minimiser(prox: ProximalMap, seed: int, strength: float) -> None:
    """No point that a minimiser finds from several starts is lower, and none near the map's own is."""
    x = matrices(seed)

    def objective(y: torch.Tensor) -> float:
        return (strength * regulariser(prox, y) + (y - x).square().sum() / 2).item()

    found = prox(x, strength, START)
    least = objective(found)
    for begin in (x, torch.zeros_like(x), found + 0.1 * matrices(seed + 1)):
        result = optimize.minimize(
            lambda y: objective(torch.from_numpy(y).reshape(2, 3)), begin.numpy().ravel(), method="Powell"
        )
        assert least <= result.fun + 1e-9
    for size in (1e-2, 1e-4):
        for other in range(5):
            assert least <= objective(found + size * matrices(seed + 2 + other)) + 1e-12


@all_maps
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seeds=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), strength=st.floats(0, 10))
def test_is_non_expansive(prox: ProximalMap, seeds: tuple[int, int], strength: float) -> None:
    x, y = (matrices(s) for s in seeds)
    assert (prox(x, strength, START) - prox(y, strength, START)).norm() <= (x - y).norm() * (1 + 1e-12)


@all_maps
@pytest.mark.parametrize("strength", [0.0, 1e-9, 0.05, 1.0, 50.0])
def test_displacement_lands_on_the_map(prox: ProximalMap, strength: float) -> None:
    x, step = matrices(1), 0.1 * matrices(2)
    moved = x - prox.displacement(x, step, strength, START)
    torch.testing.assert_close(moved, prox(x - step, strength, START), rtol=1e-12, atol=1e-12)
    assert torch.equal(moved == 0, prox(x - step, strength, START) == 0)


def test_l1_gives_exact_zeros_and_the_soft_threshold() -> None:
    x = torch.tensor([0.3, -0.3, 0.1, -0.1, 0.05, 0.0])
    expected = torch.tensor([0.2, -0.2, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(L1()(x, 0.1), expected)
    param = torch.nn.Parameter(torch.randn(2000, generator=torch.Generator().manual_seed(0)))
    optimizer = ProxAdam([param], lr=0.01, weight_decay=1.0, proximal="l1")
    for _ in range(60):
        param.grad = torch.zeros(2000)
        optimizer.step()
    start = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    expected = start.sign() * (start.abs() - 0.6).clamp_min(0)
    torch.testing.assert_close(param.detach(), expected, rtol=0, atol=3e-6)
    assert ((param == 0).sum() - (start.abs() < 0.6).sum()).abs() <= 2


def test_l1_below_the_precision_of_the_weights_adds_up() -> None:
    """lr * lambda = 1e-9 for 400 steps takes 4e-7 from weights around 1, on the average over 1e5 of them."""
    ends = []
    for weight_decay in (1e-4, 0.0):
        generator = torch.Generator().manual_seed(0)
        param = torch.nn.Parameter(1 + torch.rand(100_000, generator=generator))
        optimizer = ProxAdam([param], lr=1e-5, weight_decay=weight_decay, proximal="l1")
        for _ in range(400):
            param.grad = torch.randn(100_000, generator=generator)
            optimizer.step()
        ends.append(param.detach().double().mean())
    assert (ends[1] - ends[0]).item() == pytest.approx(4e-7, rel=0.01)


def test_group_lasso_takes_rows_as_a_whole() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.03, 0.04], [0.0, 0.0]])
    torch.testing.assert_close(GroupLasso()(weight, 0.5), torch.tensor([[2.7, 3.6], [0.0, 0.0], [0.0, 0.0]]))
    param = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.03, 0.04], [1.0, -1.0]]))
    optimizer = ProxAdam([param], lr=0.5, weight_decay=1.0, proximal="group_lasso")
    param.grad = torch.zeros(3, 2)
    optimizer.step()
    assert (param[1] == 0).all()
    torch.testing.assert_close(param[0].detach(), torch.tensor([2.7, 3.6]))


def test_l2_start_pulls_to_where_it_began() -> None:
    for start in ("current", [torch.tensor([1.0, -2.0])]):
        param = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = ProxAdam([param], lr=0.1, weight_decay=1.0, proximal="l2_start", start=start)
        param.grad = torch.zeros(2)
        optimizer.step()
        assert param.tolist() == [1.0, -2.0]
        with torch.no_grad():
            param.add_(1.0)
        for _ in range(200):
            param.grad = torch.zeros(2)
            optimizer.step()
        torch.testing.assert_close(param.detach(), torch.tensor([1.0, -2.0]), rtol=0, atol=1e-5)


class Projection(ProximalMap):
    """The indicator of [-1, 1], as a user would write it."""

    name = "unit_interval"

    def __call__(self, x, strength, start=None):
        return x.clamp(-1, 1)


def test_a_map_of_ones_own() -> None:
    param = torch.nn.Parameter(torch.tensor([0.5, 5.0, -5.0]))
    optimizer = ProxAdam([param], lr=0.1, weight_decay=1.0, proximal=Projection())
    param.grad = torch.tensor([-1.0, 0.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.tensor([0.6, 1.0, -1.0]))
    assert optimizer.state_dict()["param_groups"][0]["proximal"] == "unit_interval"
    again = ProxAdam([param], lr=0.1, weight_decay=1.0, proximal=Projection())
    again.load_state_dict(optimizer.state_dict())
    again.step()
    with pytest.raises(ValueError, match="'unit_interval'"):
        ProxAdam([param], lr=0.1).load_state_dict(optimizer.state_dict())


def test_maps_per_group() -> None:
    a, b = (torch.nn.Parameter(torch.full((2,), 0.05)) for _ in range(2))
    optimizer = ProxAdam([{"params": [a], "proximal": "l1"}, {"params": [b]}], lr=0.1, weight_decay=1.0)
    a.grad, b.grad = torch.zeros(2), torch.zeros(2)
    optimizer.step()
    assert (a == 0).all()
    torch.testing.assert_close(b.detach(), torch.full((2,), 0.05 / 1.1))
