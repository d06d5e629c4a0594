"""Quantities derived from the records. Needs neither torch nor a GPU.

Definitions, with x the entries of a gradient, an update or a weight (they all add up over parameters, so a module and
the whole model have them too):

- scale: log2 of the root mean square of x over its finite entries. Unit: octaves (powers of two).
- spread between modules: the inter-quartile range (75 % minus 25 % quantile, linear interpolation) of the modules'
  scales. Modules without a non-zero entry are left out. Unit: octaves; 0 with fewer than two modules.
- spread within a module: the inter-quartile range of log2 |x| over the module's non-zero finite entries, from the
  histogram, entries lying evenly within their bin. Unit: octaves, resolution about one bin.
- update-to-weight ratio: rms(update) / rms(weight). No unit; NaN where the weights are all zero.
"""

from collections.abc import Sequence

import numpy
import pandas
import pyarrow

from hf_proxadam.scales.store import MIN_EXPONENT

_ADDITIVE = ["numel", "zeros", "nonfinite", "finite", "sum_squares"]


def quantile(histograms: numpy.ndarray, share: float) -> numpy.ndarray:
    """Find the quantile of log2 |x| in histograms over powers of two.

    Args:
        histograms: Shape (rows, bins): weights of the bins; bin i covers [MIN_EXPONENT + i, MIN_EXPONENT + i + 1).
        share: The quantile, in [0, 1].

    Returns:
        Shape (rows,), in octaves; NaN where a histogram is empty.
    """
    histograms = numpy.asarray(histograms, dtype=float)
    cumulative = histograms.cumsum(1)
    target = share * cumulative[:, -1]
    at = (cumulative >= target[:, None]).argmax(1)
    rows = numpy.arange(len(histograms))
    # A quantile of 0 would stop at the empty bins below the first entry.
    at = numpy.maximum(at, (histograms > 0).argmax(1))
    height = histograms[rows, at]
    with numpy.errstate(invalid="ignore", divide="ignore"):
        inside = (target - (cumulative[rows, at] - height)) / height
    return numpy.where(cumulative[:, -1] > 0, MIN_EXPONENT + at + inside, numpy.nan)


def spread_within(histograms: numpy.ndarray) -> numpy.ndarray:
    """Return the inter-quartile range of log2 |x| per histogram: shape (rows, bins) to (rows,), in octaves."""
    return quantile(histograms, 0.75) - quantile(histograms, 0.25)


def spread_between(rms: Sequence[float] | numpy.ndarray) -> float:
    """Return the inter-quartile range of log2 rms over modules, in octaves; zeros and NaN are left out."""
    values = numpy.asarray(rms, dtype=float)
    values = values[numpy.isfinite(values) & (values > 0)]
    if len(values) < 2:
        return 0.0
    low, high = numpy.quantile(numpy.log2(values), [0.25, 0.75])
    return float(high - low)


def by_module(table: pyarrow.Table) -> pandas.DataFrame:
    """Add the records of the parameters up to modules.

    Args:
        table: What `load` returns.

    Returns:
        One row per step, module and quantity with the columns step, epoch, module, quantity, numel, zeros, nonfinite,
        finite, sum_squares, max, min_nonzero, histogram, rms, scale and spread_within (both in octaves).
    """
    return _add_up(table, ["step", "epoch", "module", "quantity"])


def whole_model(table: pyarrow.Table) -> pandas.DataFrame:
    """Add the records of all parameters up: one row per step and quantity, and the spread between modules.

    Returns:
        The columns of `by_module` but for `module`, and spread_between (octaves).
    """
    whole = _add_up(table, ["step", "epoch", "quantity"])
    between = by_module(table).groupby(["step", "quantity"])["rms"].agg(spread_between).rename("spread_between")
    return whole.merge(between.reset_index(), on=["step", "quantity"])


def update_to_weight(modules: pandas.DataFrame) -> pandas.DataFrame:
    """Return the update-to-weight ratio per step and module: the columns step, module and ratio.

    Args:
        modules: What `by_module` returns.
    """
    rms = modules.pivot(index=["step", "module"], columns="quantity", values="rms")
    ratio = (rms["update"] / rms["weight"]).replace(numpy.inf, numpy.nan)
    return ratio.rename("ratio").reset_index()


def _add_up(table: pyarrow.Table, keys: list[str]) -> pandas.DataFrame:
    frame = table.select([*_COLUMNS]).to_pandas()
    groups = frame.groupby(keys, sort=False, dropna=False)
    result = groups[_ADDITIVE].sum()
    result["max"] = groups["max"].max()
    result["min_nonzero"] = groups["min_nonzero"].min()
    which = groups.ngroup().to_numpy()
    bins = table["histogram"].combine_chunks().flatten().to_numpy().reshape(len(frame), -1)
    histograms = numpy.zeros((len(result), bins.shape[1] if len(frame) else 0))
    numpy.add.at(histograms, which, bins)
    result["histogram"] = list(histograms)
    with numpy.errstate(invalid="ignore", divide="ignore"):
        result["rms"] = numpy.sqrt(result["sum_squares"] / result["finite"])
        result["scale"] = numpy.log2(result["rms"]).replace(-numpy.inf, numpy.nan)
    result["spread_within"] = spread_within(histograms)
    return result.reset_index()


_COLUMNS = ("step", "epoch", "module", "quantity", *_ADDITIVE, "max", "min_nonzero")
