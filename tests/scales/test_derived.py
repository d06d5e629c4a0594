import numpy
import pyarrow
import pytest

from hf_proxadam.scales.derived import (
    by_module,
    quantile,
    spread_between,
    spread_within,
    update_to_weight,
    whole_model,
)
from hf_proxadam.scales.store import BINS, MIN_EXPONENT, SCHEMA


def histogram(counts: dict[int, float]) -> numpy.ndarray:
    result = numpy.zeros(BINS)
    for exponent, count in counts.items():
        result[exponent - MIN_EXPONENT] = count
    return result


def test_quantiles_lie_evenly_within_a_bin() -> None:
    one_bin = histogram({-10: 100})
    two_bins = histogram({-10: 50, 3: 50})
    rows = numpy.stack([one_bin, two_bins, numpy.zeros(BINS)])
    numpy.testing.assert_allclose(quantile(rows, 0.25), [-9.75, -9.5, numpy.nan])
    numpy.testing.assert_allclose(quantile(rows, 0.0)[:2], [-10, -10])
    numpy.testing.assert_allclose(quantile(rows, 1.0)[:2], [-9, 4])
    numpy.testing.assert_allclose(spread_within(rows), [0.5, 13.0, numpy.nan])


def test_spread_within_equals_the_quantiles_of_the_values() -> None:
    values = numpy.exp2(numpy.random.default_rng(0).uniform(-20, -3, 100_000))
    counts = numpy.bincount(numpy.frexp(values)[1] - 1 - MIN_EXPONENT, minlength=BINS)
    exact = numpy.subtract(*numpy.quantile(numpy.log2(values), [0.75, 0.25]))
    assert spread_within(counts[None])[0] == pytest.approx(exact, abs=0.05)


def test_spread_between_leaves_out_what_has_no_scale() -> None:
    assert spread_between([2.0**-k for k in range(5)]) == pytest.approx(2.0)
    assert spread_between([2.0**-k for k in range(5)] + [0.0, numpy.nan]) == pytest.approx(2.0)
    assert spread_between([1.0]) == 0.0


def table(rows: list[dict[str, object]]) -> pyarrow.Table:
    filled = {
        "epoch": None,
        "nonfinite": 0,
        "zeros": 0,
        "learning_rate": 0.1,
        "sampled_share": 1.0,
        "clip_factor": 1.0,
    }
    return pyarrow.Table.from_pylist([{**filled, **row} for row in rows], schema=SCHEMA)


def row(
    parameter: str, quantity: str, numel: int, sum_squares: float, exponent: int, **more: object
) -> dict[str, object]:
    return {
        "step": 1,
        "module": parameter.rpartition(".")[0],
        "parameter": parameter,
        "quantity": quantity,
        "numel": numel,
        "finite": numel,
        "sum_squares": sum_squares,
        "max": 1.0,
        "min_nonzero": 0.5,
        "histogram": histogram({exponent: numel}),
        **more,
    }


def test_parameters_add_up_to_modules_and_the_model() -> None:
    rows = [
        row("a.weight", "weight", 3, 12.0, 0, max=4.0),
        row("a.bias", "weight", 1, 4.0, 2, min_nonzero=0.25),
        row("b.weight", "weight", 4, 64.0, 5),
        row("a.weight", "update", 3, 3.0, -1),
        row("a.bias", "update", 1, 1.0, -1),
        row("b.weight", "update", 4, 0.0, 0, max=None, min_nonzero=None, zeros=4, histogram=histogram({})),
    ]
    modules = by_module(table(rows)).set_index(["module", "quantity"])
    weight = modules.loc[("a", "weight")]
    assert (weight["numel"], weight["rms"], weight["scale"]) == (4, 2.0, 1.0)
    assert (weight["max"], weight["min_nonzero"]) == (4.0, 0.25)
    assert weight["histogram"].sum() == 4
    assert numpy.isnan(modules.loc[("b", "update")]["scale"])
    model = whole_model(table(rows)).set_index("quantity")
    assert model.loc["weight", "rms"] == pytest.approx(numpy.sqrt(80 / 8))
    assert model.loc["weight", "spread_between"] == pytest.approx(0.5)  # log2 rms: 1 and 2
    assert model.loc["update", "zeros"] == 4
    ratio = update_to_weight(by_module(table(rows))).set_index("module")["ratio"]
    assert ratio["a"] == pytest.approx(0.5)
    assert ratio["b"] == 0.0
