r"""Proximal maps: the regularisers that ProxAdam can take.

The proximal map of a regulariser R with strength s = eta lambda is

    prox(x) = argmin_y  s R(y) + 1/2 |y - x|^2,

and a proximal step is x <- prox(x - lr u). Every map here is non-expansive: |prox(x) - prox(y)| <= |x - y|.

A map of your own subclasses [`ProximalMap`] and defines `__call__`; see the example there.
Source: Parikh and Boyd, "Proximal Algorithms", 2014, sections 2.2, 6.5; Xuhong, Grandvalet, Davoine, "Explicit
Inductive Bias for Transfer Learning with Convolutional Networks", ICML 2018 (L2-SP).
"""

import functools
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

Strength = float | Tensor


class ProximalMap:
    """A regulariser, by its proximal map.

    Attributes:
        name: what `param_groups` and state dicts call it.
        elementwise: each coordinate for itself, so that tensors may be walked in pieces; else `__call__` is given whole
            tensors (of one FSDP shard: rows, which FSDP2 does not cut).
        needs_start: `start` is the tensor of starting weights instead of None.

    Example:
        >>> import torch
        >>> from hf_proxadam.optim import ProxAdam, ProximalMap
        >>> class Nonnegative(ProximalMap):  # the indicator of x >= 0; its map is the projection
        ...     name = "nonnegative"
        ...     def __call__(self, x, strength, start=None):
        ...         return x.clamp_min(0)
        >>> weight = torch.nn.Parameter(torch.tensor([0.5, -0.5]))
        >>> optimizer = ProxAdam([weight], lr=0.1, weight_decay=1.0, proximal=Nonnegative())
        >>> weight.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> weight.tolist()
        [0.5, 0.0]
    """

    name: ClassVar[str]
    elementwise: ClassVar[bool] = True
    needs_start: ClassVar[bool] = False

    def __call__(self, x: Tensor, strength: Strength, start: Tensor | None = None) -> Tensor:
        """prox(x), a new tensor of the shape and dtype of `x` (float32 or float64).

        Args:
            x: where the step without the regulariser ended.
            strength: eta lambda >= 0, a float or (capturable, compiled) a 0-d tensor.
            start: the starting weights, where `needs_start`.
        """
        raise TypeError(f"{type(self).__name__} does not define __call__(x, strength, start), its proximal map")

    def displacement(self, x: Tensor, step: Tensor, strength: Strength, start: Tensor | None = None) -> Tensor:
        """What to subtract from `x` to get prox(x - step).

        The built-in maps give it in closed form, so that `x` is rounded once and a decay far below `x`'s own precision
        adds up; a map of your own may leave it to this default.
        """
        return x - self(x - step, strength, start)


class L2(ProximalMap):
    r"""R(x) = 1/2 |x|^2: prox(x) = x / (1 + s). The paper's; AdamW is its first-order form."""

    name = "l2"

    def __call__(self, x: Tensor, strength: Strength, start: Tensor | None = None) -> Tensor:
        """X / (1 + s)."""
        return x / (1 + strength)

    def displacement(self, x: Tensor, step: Tensor, strength: Strength, start: Tensor | None = None) -> Tensor:
        """(step + s x) / (1 + s)."""
        return (step + strength * x) / (1 + strength)


class L2Start(ProximalMap):
    r"""R(x) = 1/2 |x - start|^2 (L2-SP): prox(x) = (x + s start) / (1 + s)."""

    name = "l2_start"
    needs_start = True

    def __call__(self, x: Tensor, strength: Strength, start: Tensor | None = None) -> Tensor:
        """(x + s start) / (1 + s)."""
        assert start is not None
        return (x + strength * start) / (1 + strength)

    def displacement(self, x: Tensor, step: Tensor, strength: Strength, start: Tensor | None = None) -> Tensor:
        """(step + s (x - start)) / (1 + s)."""
        assert start is not None
        return (step + strength * (x - start)) / (1 + strength)


class ElasticNet(ProximalMap):
    r"""R(x) = l1_ratio |x|_1 + (1 - l1_ratio)/2 |x|^2.

    prox(x) = sign(x) max(|x| - s l1_ratio, 0) / (1 + s (1 - l1_ratio)); small weights become exactly 0.

    Args:
        l1_ratio: share of the l1 norm, in [0, 1].
    """

    name = "elastic_net"

    def __init__(self, l1_ratio: float = 0.5) -> None:
        if isinstance(l1_ratio, bool) or not isinstance(l1_ratio, (int, float)) or not 0 <= l1_ratio <= 1:
            raise ValueError(f"Invalid l1_ratio value: {l1_ratio} (a number from 0 to 1)")
        self.l1_ratio = float(l1_ratio)

    def __call__(self, x: Tensor, strength: Strength, start: Tensor | None = None) -> Tensor:
        """sign(x) max(|x| - s l1_ratio, 0) / (1 + s (1 - l1_ratio))."""
        threshold = strength * self.l1_ratio
        shrunk = x.sign() * (x.abs() - threshold).clamp_min(0)
        return shrunk / (1 + strength * (1 - self.l1_ratio))

    def displacement(self, x: Tensor, step: Tensor, strength: Strength, start: Tensor | None = None) -> Tensor:
        """`x` itself where the result is 0, else (step + s l1_ratio sign(x - step) + s2 x) / (1 + s2)."""
        threshold, shrink = strength * self.l1_ratio, strength * (1 - self.l1_ratio)
        end = x - step
        moved = (step + threshold * end.sign() + shrink * x) / (1 + shrink)
        return torch.where(end.abs() <= threshold, x, moved)


class L1(ElasticNet):
    r"""R(x) = |x|_1: the soft threshold, prox(x) = sign(x) max(|x| - s, 0); small weights become exactly 0."""

    name = "l1"

    def __init__(self) -> None:
        super().__init__(l1_ratio=1.0)


class GroupLasso(ProximalMap):
    r"""R(x) = sum of |row|_2 over the rows (slices along dimension 0): whole rows become exactly 0.

    prox(row) = row max(1 - s / |row|_2, 0). A row of a linear layer's weight is what one output unit reads; of an
    embedding, one token. In a 0-d or 1-d tensor each coordinate is a row of its own, so there it is the l1 norm.
    """

    name = "group_lasso"
    elementwise = False

    def __call__(self, x: Tensor, strength: Strength, start: Tensor | None = None) -> Tensor:
        """Row max(1 - s/|row|, 0)."""
        return x - self._shrinkage(x, strength) * x

    def displacement(self, x: Tensor, step: Tensor, strength: Strength, start: Tensor | None = None) -> Tensor:
        """Step + c (x - step), where c = min(s/|row of x - step|, 1)."""
        end = x - step
        share = self._shrinkage(end, strength)
        return torch.where(share == 1, x, step + share * end)

    @staticmethod
    def _shrinkage(x: Tensor, strength: Strength) -> Tensor:
        """min(s/|row|, 1): the share of each row that is taken away; 1 for a row of zeros."""
        norm = x.abs() if x.dim() < 2 else torch.linalg.vector_norm(x.flatten(1), dim=1)
        # Compared before dividing: s/|row| overflows for tiny rows, and 0/0 is no share.
        safe = torch.where(norm > strength, norm, 1.0)
        share = torch.where(norm > strength, strength / safe, 1.0)
        return share if x.dim() < 2 else share.reshape(-1, *[1] * (x.dim() - 1))


PROXIMAL_MAPS: dict[str, type[ProximalMap]] = {c.name: c for c in (L2, L1, ElasticNet, GroupLasso, L2Start)}


def resolve(proximal: str | ProximalMap, l1_ratio: float | None = None) -> ProximalMap:
    """The map by its name or itself.

    Raises:
        ValueError: an unknown name, an object without the protocol, or `l1_ratio` for another map than elastic_net.
    """
    known = ", ".join(sorted(PROXIMAL_MAPS))
    if isinstance(proximal, ProximalMap):
        named = PROXIMAL_MAPS.get(proximal.name)
        if named is not None and not isinstance(proximal, named):
            raise ValueError(
                f"A proximal map of your own can't be named {proximal.name!r}; the names {known} are taken"
            )
    elif not isinstance(proximal, str) or proximal not in PROXIMAL_MAPS:
        raise ValueError(f"Invalid proximal value: {proximal!r} (one of {known}, or a hf_proxadam.optim.ProximalMap)")
    if l1_ratio is not None and proximal != "elastic_net":
        raise ValueError(f"l1_ratio={l1_ratio} only goes with proximal='elastic_net', got proximal={proximal!r}")
    if l1_ratio is not None:
        l1_ratio = ElasticNet(l1_ratio).l1_ratio  # refuses what is no ratio
    return _named(proximal, l1_ratio) if isinstance(proximal, str) else proximal


@functools.lru_cache(maxsize=256)
def _named(name: str, l1_ratio: float | None) -> ProximalMap:
    # One object for each name and ratio: compiled steps are kept by the map that they were compiled with.
    return ElasticNet(l1_ratio) if l1_ratio is not None else PROXIMAL_MAPS[name]()


def check_starts(starts: Iterable[Tensor], params: list[Tensor]) -> list[Tensor]:
    """Copies of the given starting weights, one for each parameter of a group and of its shape."""
    starts = list(starts)
    shapes = [tuple(s.shape) if isinstance(s, Tensor) else type(s).__name__ for s in starts]
    wanted = [tuple(p.shape) for p in params]
    if shapes != wanted:
        raise ValueError(f"start must give one tensor for each parameter, of its shape: got {shapes}, need {wanted}")
    return [s.detach().clone() for s in starts]
