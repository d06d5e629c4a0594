"""GLUE's metrics as an `evaluate.Metric` that is instantiated directly and so needs no Hub."""

from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

METRICS = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews_correlation": matthews_corrcoef,
    "pearson": lambda references, predictions: pearsonr(references, predictions).statistic,
    "spearmanr": lambda references, predictions: spearmanr(references, predictions).statistic,
}


class GlueMetric(evaluate.Metric):
    """The scores by which the benchmark ranks a task.

    Args:
        config_name: the names of the scores, joined by `+`, such as `accuracy+f1`: out of `METRICS`.

    Example:
        >>> GlueMetric("accuracy+f1").compute(predictions=[1, 0, 1], references=[1, 1, 1])
        {'accuracy': 0.6666666666666666, 'f1': 0.8}
    """

    def __init__(self, config_name: str, **kwargs: Any) -> None:
        # In memory: the alternative is a file in a cache folder that processes on one machine share.
        super().__init__(config_name, keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        kind = "float32" if "pearson" in self._names else "int64"
        return evaluate.MetricInfo(
            description="The GLUE benchmark's metrics.",
            citation="",
            features=datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)}),
        )

    @property
    def _names(self) -> list[str]:
        return str(self.config_name).split("+")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        given, right = np.asarray(predictions), np.asarray(references)
        return {name: float(METRICS[name](right, given)) for name in self._names}
