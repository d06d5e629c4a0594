"""One recorded step: its numbers stay on the device until somebody asks for them."""

from typing import Any

import numpy
import torch

from hf_proxadam.scales import derived, sharding
from hf_proxadam.scales.pieces import FINITE, HISTOGRAM, MAX, MIN, NONFINITE, SAMPLED, SUM_SQUARES, WIDTH, ZEROS

QUANTITIES = ("gradient", "update", "weight")


class Fetched:
    """A tensor on its way to the host: the copy is started at once and waited for when it is first read."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            # A copy, because a learning rate that is a tensor changes in place.
            self._host = tensor.detach().to("cpu", copy=True)

    def numpy(self) -> numpy.ndarray:
        """Return the values, waiting for the copy if need be."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._host.numpy()


class Record:
    """The statistics of one step, in rows of one parameter and one quantity.

    Args:
        step: Number of the step.
        clip_factor: What clipping multiplied the gradients with, None where unknown.
    """

    def __init__(self, step: int, clip_factor: float | torch.Tensor | None) -> None:
        self.step = step
        self.epoch: float | None = None
        self._clip_factor = _fetch(clip_factor)
        self._rows: list[tuple[str, str, int, float | Fetched]] = []
        self._vectors: list[torch.Tensor] = []
        self._rate: tuple[Any, Any] | None = None
        self._fetched: Fetched | None = None

    def add(self, parameter: str, numel: int, learning_rate: Any, vectors: dict[str, torch.Tensor | None]) -> None:
        """Add the rows of a parameter.

        Args:
            parameter: Its full name.
            numel: Its size over all processes.
            learning_rate: A number, or a tensor, which isn't waited for.
            vectors: By quantity, what `measure` made of it on this process; None where there was nothing to measure.
        """
        if self._rate is None or self._rate[0] is not learning_rate:
            # Parameters of a group share a learning rate; one that is a tensor is fetched once.
            self._rate = learning_rate, _fetch(learning_rate)
        rate = self._rate[1]
        for quantity, vector in vectors.items():
            if vector is not None:
                self._rows.append((parameter, quantity, numel, rate))
                self._vectors.append(vector)

    def seal(self, sharded: bool) -> None:
        """Add up over the processes where parameters are sharded, and start the copy to the host."""
        if not self._vectors:
            return
        device = self._vectors[0].device
        stacked = torch.stack([vector.to(device, non_blocking=True) for vector in self._vectors])
        self._fetched = Fetched(sharding.reduce(stacked) if sharded else stacked)
        self._vectors = []
        self._rate = None

    def columns(self) -> dict[str, list[Any]]:
        """Return the rows as the columns of `store.SCHEMA`."""
        values = self._values()
        count = len(values)
        finite, numel = values[:, FINITE], numpy.array([row[2] for row in self._rows], dtype=float)
        known = finite > 0
        return {
            "step": [self.step] * count,
            "epoch": [self.epoch] * count,
            "module": [parameter.rpartition(".")[0] for parameter, *_ in self._rows],
            "parameter": [row[0] for row in self._rows],
            "quantity": [row[1] for row in self._rows],
            "numel": [row[2] for row in self._rows],
            "rms": _nullable(_rms(values), known),
            "min_nonzero": _nullable(values[:, MIN], values[:, MIN] > 0),
            "max": _nullable(values[:, MAX], known),
            "zeros": values[:, ZEROS].astype(int).tolist(),
            "nonfinite": values[:, NONFINITE].astype(int).tolist(),
            "sum_squares": values[:, SUM_SQUARES].tolist(),
            "finite": finite.astype(int).tolist(),
            "learning_rate": [_value(row[3]) for row in self._rows],
            "histogram": list(values[:, HISTOGRAM]),
            "sampled_share": (values[:, SAMPLED] / numpy.maximum(numel, 1)).tolist(),
            "clip_factor": [_value(self._clip_factor)] * count,
        }

    def summary(self) -> dict[str, float]:
        """Return the whole model's numbers, for the trackers.

        Returns:
            `scales/<quantity>_rms` and `scales/<quantity>_zeros` (share of the entries) for gradient and update,
            `scales/<quantity>_spread_between` and `scales/<quantity>_spread_within` (octaves; the latter over all
            entries of the model), `scales/update_to_weight`, and `scales/nonfinite` (entries of the gradient).
            Numbers that aren't defined in this step (the rms of nothing, say) are left out.
        """
        values = self._values()
        quantities = numpy.array([row[1] for row in self._rows])
        modules = numpy.array([row[0].rpartition(".")[0] for row in self._rows])
        result, whole_rms = {}, {}
        for quantity in QUANTITIES:
            chosen = quantities == quantity
            _, which = numpy.unique(modules[chosen], return_inverse=True)
            by_module = numpy.zeros((which.max(initial=-1) + 1, WIDTH))
            numpy.add.at(by_module, which, values[chosen])
            whole = by_module.sum(0, keepdims=True)
            whole_rms[quantity] = _rms(whole)[0]
            result[f"scales/{quantity}_rms"] = whole_rms[quantity]
            if quantity == "weight":
                continue
            result[f"scales/{quantity}_zeros"] = whole[0, ZEROS] / max(whole[0, FINITE], 1)
            result[f"scales/{quantity}_spread_between"] = derived.spread_between(_rms(by_module))
            result[f"scales/{quantity}_spread_within"] = derived.spread_within(whole[:, HISTOGRAM])[0]
            if quantity == "gradient":
                result["scales/nonfinite"] = whole[0, NONFINITE]
        if whole_rms["weight"] > 0:
            result["scales/update_to_weight"] = whole_rms["update"] / whole_rms["weight"]
        return {name: float(value) for name, value in result.items() if numpy.isfinite(value)}

    def _values(self) -> numpy.ndarray:
        return numpy.zeros((0, WIDTH)) if self._fetched is None else self._fetched.numpy()


def _rms(values: numpy.ndarray) -> numpy.ndarray:
    with numpy.errstate(invalid="ignore"):
        return numpy.sqrt(values[:, SUM_SQUARES] / values[:, FINITE])


def _nullable(values: numpy.ndarray, known: numpy.ndarray) -> list[float | None]:
    return [float(value) if ok else None for value, ok in zip(values, known, strict=True)]


def _fetch(value: Any) -> Any:
    return Fetched(value) if isinstance(value, torch.Tensor) else value


def _value(value: Any) -> float | None:
    if isinstance(value, Fetched):
        return float(value.numpy().reshape(()))
    return None if value is None else float(value)
