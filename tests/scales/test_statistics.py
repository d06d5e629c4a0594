"""The statistics equal a float64 computation, by each of the three ways in which they are made."""

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_proxadam.scales.pieces import (
    _CPU_PIECE,
    FINITE,
    HISTOGRAM,
    MAX,
    MIN,
    NONFINITE,
    SAMPLED,
    SUM_SQUARES,
    WIDTH,
    ZEROS,
    measure_anywhere,
    measure_on_cpu,
)
from hf_proxadam.scales.small import measure_small
from hf_proxadam.scales.statistics import SAMPLE_SIZE, combine, flatten, measure, sample_positions
from hf_proxadam.scales.store import BINS, MIN_EXPONENT


def reference(values: numpy.ndarray) -> numpy.ndarray:
    with numpy.errstate(invalid="ignore"):  # signalling NaN
        values = values.astype(numpy.float64)
    finite = values[numpy.isfinite(values)]
    nonzero = numpy.abs(finite[finite != 0])
    result = numpy.zeros(WIDTH)
    result[SUM_SQUARES] = (finite**2).sum()
    result[FINITE] = len(finite)
    result[ZEROS] = (finite == 0).sum()
    result[NONFINITE] = len(values) - len(finite)
    result[SAMPLED] = len(values)
    result[MAX] = nonzero.max(initial=0)
    result[MIN] = nonzero.min() if len(nonzero) else 0
    exponents = numpy.frexp(nonzero)[1] - 1
    result[HISTOGRAM] = numpy.bincount(numpy.clip(exponents - MIN_EXPONENT, 0, BINS - 1), minlength=BINS)
    return result


def assert_equals_reference(result: torch.Tensor, values: numpy.ndarray) -> None:
    expected = reference(values)
    numpy.testing.assert_allclose(result.numpy()[SUM_SQUARES], expected[SUM_SQUARES], rtol=1e-13)
    numpy.testing.assert_array_equal(result.numpy()[1:], expected[1:])


def wild(size: int, seed: int = 0) -> torch.Tensor:
    """All float32 exponents, subnormals, both zeros, infinities and NaN."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (size,), generator=generator).to(torch.int32)
    x = bits.view(torch.float32).clone()
    x[torch.randint(0, size, (size // 10,), generator=generator)] = 0.0
    x[torch.randint(0, size, (size // 20,), generator=generator)] = -0.0
    tiny = torch.randint(1, 2**23, (size // 10,), generator=generator).to(torch.int32).view(torch.float32)
    x[torch.randint(0, size, (size // 10,), generator=generator)] = tiny
    return x


CASES = {
    "one": torch.tensor([-3.0]),
    "zero": torch.zeros(5),
    "negative zero": torch.tensor([-0.0, 0.0]),
    "infinite": torch.tensor([torch.inf, -torch.inf]),
    "nan": torch.tensor([torch.nan]),
    "smallest": torch.tensor([2.0**-149, -(2.0**-148), 2.0**-126, 0.0]),
    "just subnormal": torch.tensor([2.0**-126 - 2.0**-149]),
    "largest": torch.tensor([torch.finfo(torch.float32).max] * 3),
    "powers of two": torch.tensor([2.0**k for k in range(-149, 128)]),
    "below powers of two": torch.tensor([2.0**k for k in range(-125, 128)]).nextafter(torch.tensor(0.0)),
    "wild": wild(1000),
    "wild, several pieces": wild(2 * _CPU_PIECE + 17),
    "a piece of infinities": torch.cat([torch.full((_CPU_PIECE,), torch.inf), torch.ones(3)]),
    "a piece of zeros": torch.cat([torch.zeros(_CPU_PIECE), torch.tensor([0.5])]),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_float64(name: str) -> None:
    x = CASES[name]
    assert_equals_reference(measure(x), x.numpy())
    assert_equals_reference(measure_on_cpu(x, True), x.numpy())
    assert_equals_reference(measure_anywhere(x, True), x.numpy())
    assert_equals_reference(measure_small([x])[0], x.numpy())


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_equals_float64_for_any_floats(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    for result in (measure_on_cpu(x, True), measure_anywhere(x, True), measure_small([x])[0]):
        assert_equals_reference(result, x.numpy())


def test_small_tensors_are_kept_apart() -> None:
    tensors = [wild(size, seed=size) for size in (1, 2, 300, 1, 77)]
    tensors[1][:] = 0
    tensors[3][:] = torch.nan
    together = measure_small(tensors)
    for result, x in zip(together, tensors, strict=True):
        assert_equals_reference(result, x.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x = (torch.randn(1000, dtype=torch.float64) * 1e-3).to(dtype)
    x[::7] = 0
    assert_equals_reference(measure(x), x.double().numpy())


def test_float64_beyond_float32_counts_in_the_outer_bins() -> None:
    result = measure(torch.tensor([1e-300, 1e300, 1.0], dtype=torch.float64))
    assert result[HISTOGRAM][0] == 1
    assert result[HISTOGRAM][-1] == 1
    assert result[MAX] == 1e300


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [100, _CPU_PIECE + 5])
def test_difference(dtype: torch.dtype, size: int) -> None:
    before = torch.randn(size).to(dtype)
    after = (before.float() + 1e-2 * torch.randn(size)).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = (after.to(wide) - before.to(wide)).numpy()
    assert_equals_reference(measure(after, before=before), expected)
    if dtype != torch.float64:
        assert_equals_reference(measure_small([after], [before])[0], expected)


def test_no_value_overflows_the_sum_of_squares() -> None:
    x = torch.full((1000,), 3e38)
    for result in (measure_on_cpu(x, True), measure_anywhere(x, True), measure_small([x])[0]):
        assert float(result[SUM_SQUARES]) == pytest.approx(1000 * float(x[0]) ** 2, rel=1e-13)


def test_tensors_are_only_read() -> None:
    x = wild(3 * _CPU_PIECE)
    bits = x.view(torch.int32).clone()
    measure(x, sample_positions(x.numel(), torch.rand(2**10, dtype=torch.float64)), before=x)
    measure_small([x, x], [x, x])
    assert torch.equal(x.view(torch.int32), bits)


def test_parts_add_up() -> None:
    x = wild(1001)
    parts = torch.stack([measure(x[:400]), measure(x[400:401]), measure(x[401:]), measure(x[:0])])
    assert_equals_reference(combine(parts), x.numpy())


def test_a_sample_is_one_of_each_stratum() -> None:
    jitter = torch.rand(2**10, dtype=torch.float64)
    positions = sample_positions(10**6 + 7, jitter)
    assert positions is not None
    edges = numpy.arange(2**10) * (10**6 + 7) / 2**10
    assert (positions.numpy() >= numpy.floor(edges)).all()
    assert (positions.numpy() < numpy.ceil(edges + (10**6 + 7) / 2**10)).all()
    assert len(positions.unique()) == 2**10
    assert sample_positions(10**6, torch.tensor([1 - 2**-53] * 2**10, dtype=torch.float64)).max() < 10**6
    assert sample_positions(4 * 2**10, jitter) is None


def test_sampled_histogram_is_weighted_and_near() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(600_000, generator=generator)
    x[torch.rand(600_000, generator=generator) < 0.5] = 0
    x[:100] = torch.inf
    exact = measure(x)
    jitter = torch.rand(SAMPLE_SIZE, generator=generator, dtype=torch.float64)
    sampled = measure(x, sample_positions(x.numel(), jitter))
    assert sampled[SAMPLED] == SAMPLE_SIZE
    assert float(sampled[HISTOGRAM].sum()) == pytest.approx(float(exact[FINITE] - exact[ZEROS]))
    # Total variation: about 0.005 is expected of 2^16 coordinates, half of them non-zero, over some ten bins.
    assert (sampled[HISTOGRAM] - exact[HISTOGRAM]).abs().sum() / exact[HISTOGRAM].sum() < 0.03
    others = [SUM_SQUARES, FINITE, ZEROS, NONFINITE, MAX, MIN]
    assert torch.equal(sampled[others], exact[others])


def test_flatten_views_dense_tensors() -> None:
    dense = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert flatten(dense).data_ptr() == dense.data_ptr()
    assert sorted(flatten(dense).tolist()) == sorted(dense.reshape(-1).tolist())
    assert torch.equal(flatten(dense), flatten(dense.clone()))
    transposed = torch.randn(3, 4).t()
    assert flatten(transposed).data_ptr() == transposed.data_ptr()
    assert flatten(torch.randn(4, 4)[:, ::2]).shape == (8,)
    assert flatten(torch.ones(3, dtype=torch.complex64)).tolist() == [1, 0] * 3
    assert flatten(torch.tensor(2.0)).tolist() == [2.0]
