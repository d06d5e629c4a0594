"""Records the scales of gradients, updates and weights while any loop trains with any torch optimizer."""

import logging
import math
import os
import uuid
import warnings
from typing import Any, NamedTuple

import torch

from hf_proxadam.scales import sharding
from hf_proxadam.scales.parameters import inner_optimizer, named_parameters, refuse_unsupported
from hf_proxadam.scales.record import Record
from hf_proxadam.scales.statistics import SAMPLE_SIZE
from hf_proxadam.scales.store import Store
from hf_proxadam.scales.tracking import Sampler, Snapshot

logger = logging.getLogger(__name__)

_UNCLIPPED = (0.0, math.inf)


class GradientScaleRecorder:
    """Records, every few steps, the statistics of each parameter's gradient, update and weight to Parquet files.

    It listens to the optimizer's own step hooks, so it sees what the optimizer sees: gradients after reduction over
    processes, accumulation, unscaling and clipping. With x the parameters before a step and x' those after it, the
    record of the step holds the gradient, the update x' - x (what was really added, decay included) and the weight x.
    Gradients, parameters, optimizer state and the global random numbers are left as they are. On recorded steps one
    copy of the parameters is held from before the step until after it.

    With data parallelism the first process records; with sharded parameters (FSDP2) all must make a recorder, each
    measures its own part, and the first writes. What is measured of a tensor is defined in
    `hf_proxadam.scales.statistics`, the columns in `hf_proxadam.scales.store.SCHEMA`.

    Args:
        model: Names the parameters; it may be wrapped in DistributedDataParallel or compiled.
        optimizer: Any torch optimizer, or one that accelerate has prepared.
        folder: Where the Parquet files go; one folder per run.
        every: Steps from one record to the next, at least 1; the steps `every`, `2 * every`, ... are recorded.
        exact_histograms: Whether histograms are made from all coordinates; a seeded sample otherwise (all the other
            statistics are always exact).
        sample_size: Coordinates of each tensor that its histogram is made from, at least 2^16; smaller tensors are
            taken whole.
        records_per_part: Records that one file holds, and that a kill can lose, at least 1.
        seed: Seed of the samples.
        replace: Whether the records of another run in `folder` are deleted; they are refused otherwise.
        resume: What `state_dict` returned for a checkpoint: the recorder goes on with that run, and rows of steps
            after the checkpoint, which will be run again, are taken out.

    Raises:
        ValueError: If an argument is out of range, the folder can't be written or holds another run's records, or the
            parameters are held by DeepSpeed, FSDP1 or on a device without float64.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with GradientScaleRecorder(model, optimizer, "scales", every=1) as recorder:  # doctest: +SKIP
        ...     model(torch.ones(1, 4)).sum().backward()
        ...     optimizer.step()
        >>> table = hf_proxadam.scales.load("scales")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        folder: str | os.PathLike[str],
        every: int = 10,
        *,
        exact_histograms: bool = False,
        sample_size: int = SAMPLE_SIZE,
        records_per_part: int = 16,
        seed: int = 0,
        replace: bool = False,
        resume: dict[str, Any] | None = None,
    ) -> None:
        check_at_least("every", every, 1)
        check_at_least("sample_size", sample_size, SAMPLE_SIZE)
        check_at_least("records_per_part", records_per_part, 1)
        refuse_unsupported(model, optimizer)
        self.model = model
        self.optimizer = inner_optimizer(optimizer)
        self.every = every
        self.exact_histograms = exact_histograms
        self.sample_size = sample_size
        self.records_per_part = records_per_part
        self.seed = seed
        self.run: str = resume["run"] if resume else uuid.uuid4().hex
        self.step: int = resume["step"] if resume else 0
        """Optimizer steps done so far. A loop that counts them itself may set it before a step."""
        self.lost_records = 0
        """Records that the disk refused."""
        self._store = Store(folder, self.run) if sharding.rank() == 0 else None
        if self._store is not None:
            self._store.begin(self.step, replace=replace)
        self._clipping: tuple[float | torch.Tensor, float] | None = _UNCLIPPED
        self._begun: Begun | None = None
        self._pending: list[Record] = []
        self._last: Record | None = None
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]

    def __enter__(self) -> "GradientScaleRecorder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def clipped(self, total_norm: float | torch.Tensor, max_norm: float) -> None:
        """Tell the recorder that the gradients of the coming step were clipped by norm.

        Args:
            total_norm: Norm before clipping, as `torch.nn.utils.clip_grad_norm_` returns it; it isn't waited for.
            max_norm: The largest norm that was allowed.
        """
        self._clipping = total_norm, max_norm

    def clipping_unknown(self) -> None:
        """Tell the recorder that the gradients of the coming step may have been clipped, by an unknown factor."""
        self._clipping = None

    def step_skipped(self) -> None:
        """Tell the recorder that a step was left out after an overflow (GradScaler): its update is zero."""
        self._before_step(self.optimizer, (), {})
        self._after_step(self.optimizer, (), {})

    def set_epoch(self, epoch: float) -> None:
        """Enter the epoch of the step just done, where that step was recorded."""
        if self._pending and self._pending[-1].step == self.step:
            self._pending[-1].epoch = epoch

    def summary(self) -> dict[str, float]:
        """Return a handful of numbers about the last record (`Record.summary`), once; empty where there is no new one.

        A record that is still on its way from the device is waited for.
        """
        if self._store is None or self._last is None:
            return {}
        last, self._last = self._last, None
        return last.summary()

    def flush(self) -> None:
        """Write what was recorded so far. Where the disk refuses it, it is lost and counted; training goes on."""
        pending, self._pending = self._pending, []
        if self._store is None or not pending:
            return
        columns: dict[str, list[Any]] = {}
        for record in pending:
            for name, values in record.columns().items():
                columns.setdefault(name, []).extend(values)
        try:
            self._store.write(columns)
        except OSError as error:
            if self.lost_records == 0:
                warnings.warn(
                    f"Gradient scales can't be written to {str(self._store.folder)!r} ({error.strerror or error}): "
                    "training goes on, what can't be written is lost.",
                    stacklevel=2,
                )
            self.lost_records += len(pending)

    def close(self) -> None:
        """Write what is left and leave the optimizer as it was; more calls do nothing."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.flush()
        if self.lost_records:
            logger.warning("%d records of gradient scales were lost.", self.lost_records)

    def state_dict(self) -> dict[str, Any]:
        """Write what was recorded so far and return what a checkpoint must hold to `resume` from."""
        self.flush()
        return {"run": self.run, "step": self.step}

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._begun = None
        if (self.step + 1) % self.every != 0:
            return
        if len(self._pending) >= self.records_per_part:
            # Here, and not when the last one was made, since by now no copy from the device has to be waited for.
            self.flush()
        parameters = list(named_parameters(self.model, self.optimizer))
        sharded = any(sharding.is_sharded(parameter) for _, parameter, _ in parameters)
        if not sharded and sharding.rank() != 0:
            return
        size = None if self.exact_histograms else self.sample_size
        sampler = Sampler(self.seed, self.step + 1, size)
        # A closure computes the gradients inside the step; args[0] is the optimizer.
        closure = any(callable(argument) for argument in (*args[1:], *kwargs.values()))
        snapshot = Snapshot(parameters, sampler)
        if not closure:
            snapshot.take_gradients(getattr(optimizer, "grad_scale", None))
        snapshot.take_weights()
        self._begun = Begun(Record(self.step + 1, clip_factor(self._clipping)), snapshot, sharded, closure)

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.step += 1
        self._clipping = _UNCLIPPED
        begun, self._begun = self._begun, None
        if begun is None:
            return
        if begun.closure:
            begun.snapshot.take_gradients()
        begun.snapshot.finish(begun.record)
        begun.record.seal(begun.sharded)
        self._pending.append(begun.record)
        self._last = begun.record


class Begun(NamedTuple):
    """A recorded step between its hooks."""

    record: Record
    snapshot: Snapshot
    sharded: bool
    closure: bool


def clip_factor(clipping: tuple[float | torch.Tensor, float] | None) -> torch.Tensor | None:
    """Return what clipping by norm multiplied gradients with, as torch.nn.utils.clip_grad_norm_ computes it."""
    if clipping is None:
        return None
    total_norm, max_norm = clipping
    norm = torch.as_tensor(sharding.full(total_norm)).detach().double()
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse a number that is too small.

    Raises:
        ValueError: If `value` is no whole number of at least `least`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, but it is {value!r}.")
