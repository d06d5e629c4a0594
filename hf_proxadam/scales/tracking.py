"""What is taken of the parameters in one recorded step, before and after the optimizer moves them."""

from collections.abc import Sequence
from typing import Any

import torch

from hf_proxadam.scales import sharding
from hf_proxadam.scales.pieces import FINITE, SAMPLED, WIDTH, ZEROS
from hf_proxadam.scales.record import Record
from hf_proxadam.scales.small import is_small, measure_small
from hf_proxadam.scales.statistics import flatten, measure, sample_positions


class Sampler:
    """Draws the coordinates of a step's histograms. Its generators are its own: the training's aren't touched.

    Args:
        seed: Seed of the run.
        step: The step, so that each one draws others.
        size: Coordinates to draw from each large tensor; None for all.
    """

    def __init__(self, seed: int, step: int, size: int | None) -> None:
        self._seed = hash((seed, step)) % 2**63
        self._size = size
        self._jitter: dict[torch.device, torch.Tensor] = {}
        self._positions: dict[tuple[int, torch.device], torch.Tensor | None] = {}

    def positions(self, numel: int, device: torch.device) -> torch.Tensor | None:
        """Return the coordinates for a tensor of `numel` entries; None for all of them."""
        if self._size is None:
            return None
        if device not in self._jitter:
            generator = torch.Generator(device).manual_seed(self._seed)
            self._jitter[device] = torch.rand(self._size, generator=generator, dtype=torch.float64, device=device)
        if (numel, device) not in self._positions:
            self._positions[numel, device] = sample_positions(numel, self._jitter[device])
        return self._positions[numel, device]


class Snapshot:
    """All parameters in one recorded step.

    Args:
        parameters: Name, parameter and learning rate (a number or a tensor) of each. FSDP2 may swap parameters between
            steps, not within one.
        sampler: Draws the coordinates of the histograms.
    """

    def __init__(self, parameters: Sequence[tuple[str, torch.Tensor, Any]], sampler: Sampler) -> None:
        self._parameters = parameters
        self._sampler = sampler
        # Of equal copies on several processes one is counted; the others take part with zeros.
        self._counts = [sharding.counts_here(parameter) for _, parameter, _ in parameters]
        self._before: list[torch.Tensor] = []
        self._gradients: dict[int, torch.Tensor] = {}
        self._weights: dict[int, torch.Tensor] = {}

    def take_gradients(self, grad_scale: torch.Tensor | None = None) -> None:
        """Measure the gradients of the parameters that have one.

        Args:
            grad_scale: What they are multiplied with, where the optimizer itself takes it out (fused kernels).
        """
        flats = {}
        absent = {}
        for index, (_, parameter, _) in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            gradient = sharding.local(parameter.grad)
            if gradient.is_sparse:
                size = gradient.numel()
                gradient = gradient.coalesce().values()
                absent[index] = size - gradient.numel()
            if grad_scale is not None:
                gradient = gradient / grad_scale.to(gradient.device)
            flats[index] = flatten(gradient)
        self._gradients = self._measure(flats)
        for index, zeros in absent.items():
            if self._counts[index]:
                self._gradients[index][[FINITE, ZEROS, SAMPLED]] += zeros

    def take_weights(self) -> None:
        """Measure the parameters and keep a copy of them."""
        flats = self._flats()
        self._before = [flat.clone() if here else flat for flat, here in zip(flats, self._counts, strict=True)]
        self._weights = self._measure(dict(enumerate(flats)))

    def finish(self, record: Record) -> None:
        """Measure what was added to the parameters since `take_weights`, and enter everything into the record."""
        updates = self._measure(dict(enumerate(self._flats())), self._before)
        self._before = []
        for index, (name, parameter, learning_rate) in enumerate(self._parameters):
            numel = parameter.numel() * (2 if parameter.is_complex() else 1)
            vectors = {
                "gradient": self._gradients.get(index),
                "update": updates[index],
                "weight": self._weights[index],
            }
            record.add(name, numel, learning_rate, vectors)

    def _flats(self) -> list[torch.Tensor]:
        return [flatten(sharding.local(parameter.detach())) for _, parameter, _ in self._parameters]

    def _measure(
        self, flats: dict[int, torch.Tensor], before: Sequence[torch.Tensor] | None = None
    ) -> dict[int, torch.Tensor]:
        vectors: dict[int, torch.Tensor] = {}
        small: dict[torch.dtype, list[int]] = {}
        for index, flat in flats.items():
            if not self._counts[index]:
                vectors[index] = torch.zeros(WIDTH, dtype=torch.float64, device=flat.device)
            elif is_small(flat):
                small.setdefault(flat.dtype, []).append(index)
            else:
                positions = self._sampler.positions(flat.numel(), flat.device)
                vectors[index] = measure(flat, positions, None if before is None else before[index])
        for group in small.values():
            subtrahends = None if before is None else [before[index] for index in group]
            vectors.update(zip(group, measure_small([flats[index] for index in group], subtrahends), strict=True))
        return vectors
