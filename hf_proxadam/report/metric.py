"""How a metric is written: accuracies as percentages and differences in points, all others as they are."""

import dataclasses
from typing import TypeVar

import pandas as pd

from hf_proxadam.report import text
from hf_proxadam.report.data import Contents

Value = TypeVar("Value", float, pd.Series)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """The metric that a study's cells are chosen by.

    Attributes:
        name: its name without the split, such as `accuracy`.
        greater_is_better: whether its largest value is the best.
    """

    name: str
    greater_is_better: bool

    @classmethod
    def of(cls, contents: Contents) -> "Metric":
        """The metric of a study."""
        return cls(name=contents.metric, greater_is_better=contents.greater_is_better)

    @property
    def is_share(self) -> bool:
        """Whether its values are shares of the examples, shown as percentages."""
        return self.name == "accuracy"

    @property
    def factor(self) -> float:
        """What a value is multiplied with to be shown."""
        return 100.0 if self.is_share else 1.0

    @property
    def pattern(self) -> str:
        """The format of a shown value."""
        return ".2f" if self.is_share else ".4f"

    @property
    def unit(self) -> str:
        """The unit of a difference, with a space before it where it has one."""
        return " points" if self.is_share else ""

    def label(self, name: str) -> str:
        """`name` (the metric's, made harmless for where it stands) with the unit, for an axis or a column."""
        return f"{name} (%)" if self.is_share else name

    @property
    def loss_label(self) -> str:
        """What `loss` gives, with its unit."""
        return "test error (%)" if self.is_share else f"test {text.visible(self.name)}"

    def loss(self, values: Value) -> Value:
        """The test error in % for an accuracy; any other metric as it is."""
        return 100.0 * (1.0 - values) if self.is_share else values

    def number(self, value: float) -> str:
        """A value that has been multiplied with `factor` already."""
        return text.number(value, self.pattern)

    def value(self, value: float) -> str:
        """A value as it stands in the tables."""
        return text.number(value * self.factor, self.pattern)

    def difference(self, value: float) -> str:
        """A difference of two values, with its sign."""
        return text.number(value * self.factor, self.pattern, sign=True)

    def interval(self, low: float, high: float, sign: bool = False) -> str:
        """An interval of values, or of differences (`sign`)."""
        return text.interval(low * self.factor, high * self.factor, self.pattern, sign)
