"""What a task is: data in splits, a model for it, how a batch is made and how predictions are scored."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import EvalPrediction, PreTrainedModel


class Split(Protocol):
    """A part of the data: rows by index, as PyTorch's map-style datasets and `datasets.Dataset` are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@runtime_checkable
class Task(Protocol):
    """One kind of experiment. It knows no optimizer.

    A task is a frozen keyword-only dataclass whose fields are the options that a study file may set under `model:`; it
    checks them in `__post_init__` (ValueError). Making one is cheap: the data is read when a split is first asked for.

    Attributes:
        metrics: names of what `compute_metrics` returns.
        has_test: whether there is a split to report on beside the one that hyper-parameters are chosen on.
    """

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores."""

    @property
    def has_test(self) -> bool:
        """Whether `test` may be asked for."""

    @property
    def train(self) -> Split:
        """What the model learns from."""

    @property
    def validation(self) -> Split:
        """What hyper-parameters are chosen on."""

    @property
    def test(self) -> Split:
        """What is reported."""

    def make_model(self) -> PreTrainedModel:
        """Make a fresh model; its random weights come from torch's global generator, which the caller seeds."""

    def collate(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Make a batch of the rows of a split."""

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Score the model's outputs on a whole split."""


class RecordedTask(Task, Protocol):
    """A task that a run of its own script tells about."""

    def describe(self) -> dict[str, Any]:
        """Tell what was run, for `run.json` and the model's card.

        Returns:
            `name`, `pipeline_tag` (the Hub's), `metrics`, `dataset` (`name`, `id`, `config`, `local`, `revision`,
            `sha256`), `splits` (name to `of`, the dataset's own split, and `examples`), `base_model` and
            `from_scratch`.
        """


def unscaled(model: PreTrainedModel) -> PreTrainedModel:
    """Keep the gradients' scale independent of gradient accumulation and of the number of processes; returns `model`.

    Several architectures' forward takes any keyword, and the Trainer concludes that they divide their loss by
    `num_items_in_batch`. They don't, and their gradients come out multiplied by accumulation steps x processes
    (transformers issue 47688), which would spoil recorded scales and every comparison with an optimizer that is not
    scale-free.
    """
    model.accepts_loss_kwargs = False
    return model
