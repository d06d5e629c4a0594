"""Stochastic rounding: unbiased, exact where it can be, and only ever to a neighbour."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_proxadam.optim import ProxAdam
from hf_proxadam.optim.rounding import stochastic_round

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def noise(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2**16, (n,), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))


@DTYPES
@settings(max_examples=60, deadline=None, derandomize=True)
@given(value=st.floats(-60000, 60000, width=32))
def test_goes_to_a_neighbour_and_is_unbiased(dtype: torch.dtype, value: float) -> None:
    n = 40_000
    x = torch.full((n,), value)
    rounded = stochastic_round(x, dtype, noise(n)).double()
    assert rounded.unique().numel() <= 2
    low, high = rounded.min().item(), rounded.max().item()
    assert low <= value <= high or low == high == x[0].to(dtype).double().item()
    spacing = high - low
    # The standard error of the mean of n coin throws is at most spacing / (2 sqrt(n)); 2^-13 is the fp16 subnormals'.
    assert abs(rounded.mean().item() - value) <= spacing * (5 * 0.5 / n**0.5 + 2**-13) + 1e-9 * (spacing == 0)


@DTYPES
def test_every_number_of_the_dtype_stays(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for seed in range(3):
        again = stochastic_round(every.float(), dtype, noise(2**16, seed))
        assert torch.equal(again[~every.isnan()], every[~every.isnan()])
        assert again[every.isnan()].isnan().all()


@DTYPES
def test_numbers_past_the_largest_go_where_torch_puts_them(dtype: torch.dtype) -> None:
    values = torch.tensor([3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan")])
    torch.testing.assert_close(stochastic_round(values, dtype, noise(5)), values.to(dtype), equal_nan=True)


def test_updates_below_the_precision_of_bf16_add_up() -> None:
    """100 steps of 1e-4 at weights of 1, where bf16 numbers are 2^-8 apart: nearest stays, stochastic moves 0.01."""
    moved = {}
    for rounding in ("nearest", "stochastic"):
        param = torch.nn.Parameter(torch.ones(100_000, dtype=torch.bfloat16))
        optimizer = ProxAdam([param], lr=1e-4, weight_decay=0.0, rounding=rounding)
        for _ in range(100):
            param.grad = torch.ones_like(param)
            optimizer.step()
        moved[rounding] = 1 - param.detach().double().mean().item()
    assert moved["nearest"] == 0
    assert moved["stochastic"] == pytest.approx(0.01, rel=0.02)


def test_bits_depend_on_the_seed_and_the_step_alone() -> None:
    def run(seed: int, disturb: bool) -> torch.Tensor:
        param = torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
        optimizer = ProxAdam([param], lr=1e-3, rounding="stochastic", seed=seed)
        for _ in range(5):
            param.grad = torch.ones_like(param)
            optimizer.step()
            if disturb:
                torch.rand(3)
        return param.detach()

    assert torch.equal(run(0, False), run(0, True))
    assert not torch.equal(run(0, False), run(1, False))


def test_compiling_draws_no_bits() -> None:
    """A resumed run compiles in its first step, where the unbroken one had compiled before."""
    from hf_proxadam.optim.compiled import compiled_rows

    compiled_rows.cache_clear()
    ends = []
    for _ in ("compiles", "has compiled"):
        params = [torch.nn.Parameter(torch.ones(n, dtype=torch.bfloat16)) for n in (9000, 40)]
        optimizer = ProxAdam(params, lr=1e-3, rounding="stochastic", compile=True)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        ends.append(torch.cat([p.detach() for p in params]))
    assert compiled_rows.cache_info().misses == 1
    assert torch.equal(*ends)
    assert ends[0].unique().numel() == 2
