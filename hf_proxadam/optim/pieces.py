"""A bucket of tensors in pieces, each worth a call to torch: large ones in slices, small ones together."""

import sys
from collections.abc import Callable, Iterator
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .update import Form, Scalars, adam_update_many, regularised, torch_has_a_kernel

# In elements. On a CPU a piece of each of five tensors has to fit the cache; a GPU wants few launches instead.
_PIECE = {"cpu": 2**18}
_PIECE_BY_KERNEL = 2**19
_PIECE_ELSEWHERE = 2**22
_GATHERED = {"cpu": 2**17}
_SMALL = {"cpu": 2**13}
_SMALL_ELSEWHERE = 2**18

_DTYPE, _DEVICE = attrgetter("dtype"), attrgetter("device")


class Row(NamedTuple):
    """The tensors of one parameter, or of one piece of it, in the order that `adam_update` takes them."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    second: Tensor
    max_second: Tensor | None
    start: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Row":
        """The row with `change` made to each of its tensors."""
        return Row(*[None if t is None else change(t) for t in self])  # type: ignore[arg-type]


_WRITTEN = (True, False, True, True, True, False)  # which of them the update writes to


class Bucket(NamedTuple):
    """The tensors of several parameters: for each field of [`Row`] a list, all of one length.

    `max_seconds` and `starts` are lists of None where the update has no use for them. What is done for each parameter
    at each step is written as passes over these lists, by functions of C: for small tensors that, and not the update,
    is what takes the time.
    """

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    seconds: list[Tensor]
    max_seconds: list[Any]
    starts: list[Any]

    def columns(self) -> list[list[Any]]:
        """The lists."""
        return list(self)

    def rows(self) -> list[Row]:
        """The same, parameter by parameter."""
        return [Row(*row) for row in zip(*self, strict=True)]

    def take(self, indices: list[int]) -> "Bucket":
        """Some of the parameters."""
        return Bucket(*([column[i] for i in indices] for column in self.columns()))

    def by_kind(self, counts: list[float]) -> list[tuple[float, "Bucket"]]:
        """Buckets of equal step counts, devices and dtypes, each with its count."""
        params, grads, exp_avgs, seconds, *_ = self
        devices, dtypes = map(_DEVICE, params), map(_DTYPE, params)
        of_state = map(_DTYPE, grads), map(_DEVICE, exp_avgs), map(_DTYPE, exp_avgs), map(_DTYPE, seconds)
        kinds = list(zip(counts, devices, dtypes, *of_state, strict=True))
        if kinds.count(kinds[0]) == len(kinds):
            return [(counts[0], self)]
        places: dict[tuple[Any, ...], list[int]] = {}
        for index, kind in enumerate(kinds):
            places.setdefault(kind, []).append(index)
        return [(kind[0], self.take(indices)) for kind, indices in places.items()]


def pieces(bucket: Bucket, scalars: Scalars, form: Form, *, whole: bool) -> Iterator[tuple[Row, Bucket | None]]:
    """What is left to update after torch's kernel has taken the small tensors, where it can.

    That is small tensors gathered into one, and slices of the others (with `whole` these tensors as they are).

    Yields:
        A piece, and what it was gathered from: the caller gives both to [`scatter`] after the update.
    """
    first = bucket.params[0]
    device = first.device.type
    few, many = _SMALL.get(device, _SMALL_ELSEWHERE), _GATHERED.get(device, _PIECE_ELSEWHERE)
    size = _PIECE.get(device, _PIECE_ELSEWHERE)
    same_dtype = first.dtype == bucket.grads[0].dtype == bucket.exp_avgs[0].dtype
    by_kernel = device == "cpu" and same_dtype and torch_has_a_kernel(form, scalars)
    if by_kernel:
        size = _PIECE_BY_KERNEL
        if not (regularised(form) or whole):
            few = many = sys.maxsize  # no scratch is needed, so there is nothing to cut large tensors for

    parts, others = _small(bucket, few, many)
    for part in parts:
        flat = _flat(part)
        if by_kernel:
            adam_update_many(flat.params, flat.grads, flat.exp_avgs, flat.seconds, scalars, form)
        else:
            yield _gather(flat), flat  # not named here, for it would be held until the last piece is done
    for row in others.rows():
        numel = row.param.numel()
        if numel > size and not whole:
            for piece in _slices(row, size):
                yield piece, None
        elif numel:
            yield row if whole else flatten(row) or row, None


def _gather(flat: Bucket) -> Row:
    return Row(*(None if column[0] is None else torch.cat(column) for column in flat.columns()))  # type: ignore[arg-type]


def scatter(piece: tuple[Tensor | None, ...], flat: Bucket | None) -> None:
    """Write an updated piece back into what it was gathered from."""
    if flat is not None:
        sizes = list(map(Tensor.numel, flat.params))
        for column, values, written in zip(flat.columns(), piece, _WRITTEN, strict=False):
            if written and values is not None:
                torch.split_with_sizes_copy(values, sizes, out=column)


def all_contiguous(row: Row) -> bool:
    """Whether the row's tensors have no gaps and the order of their elements in memory."""
    param, grad, exp_avg, second, max_second, start = row  # spelt out, for it is asked of each tensor at each step
    return (
        param.is_contiguous()
        and grad.is_contiguous()
        and exp_avg.is_contiguous()
        and second.is_contiguous()
        and (max_second is None or max_second.is_contiguous())
        and (start is None or start.is_contiguous())
    )


def _small(bucket: Bucket, few: int, many: int) -> tuple[list[Bucket], Bucket]:
    """The contiguous tensors of 1 to `few` elements, in parts of at most `many`.

    Returns:
        These parts, and the other tensors.
    """
    present = [column for column in bucket.columns() if column[0] is not None]
    sizes = list(map(Tensor.numel, bucket.params))
    if min(sizes) > 0 and max(sizes) <= few and sum(sizes) <= many and all(map(Tensor.is_contiguous, chain(*present))):
        return [bucket], bucket.take([])
    parts: list[list[int]] = [[]]
    others: list[int] = []
    total = 0
    dense = map(all, zip(*(map(Tensor.is_contiguous, column) for column in present), strict=True))
    for index, (numel, is_dense) in enumerate(zip(sizes, dense, strict=True)):
        if not 0 < numel <= few or not is_dense:
            others.append(index)
            continue
        if total + numel > many:
            parts.append([])
            total = 0
        parts[-1].append(index)
        total += numel
    return [bucket.take(part) for part in parts if part], bucket.take(others)


def _flat(bucket: Bucket) -> Bucket:
    """1-d views of all tensors, which are contiguous."""
    dims = list(map(Tensor.dim, bucket.params))
    if dims.count(1) == len(dims):
        return bucket
    columns = (
        c if c[0] is None else [t if d == 1 else t.view(-1) for t, d in zip(c, dims, strict=True)]
        for c in bucket.columns()
    )
    return Bucket(*columns)


def _slices(row: Row, size: int) -> Iterator[Row]:
    """The row in pieces of at most `size` elements: of the flat tensors where their layouts agree and have no gaps."""
    flat = flatten(row)
    numel = row.param.numel()
    if flat is not None:
        row, dim, length = flat, 0, size
    else:  # tensors with gaps or with layouts of their own: cut along the longest dimension
        dim = max(range(row.param.dim()), key=row.param.shape.__getitem__)
        length = max(1, size * row.param.shape[dim] // numel)
    columns = [None if t is None else t.split(length, dim) for t in row]
    for i in range(len(row.param.split(length, dim))):
        yield Row(*(None if column is None else column[i] for column in columns))  # type: ignore[arg-type]


def flatten(row: Row) -> Row | None:
    """1-d views of all tensors of the row, in the order of the parameter's memory; None where there are none."""
    if not all_contiguous(row):
        order = sorted(range(row.param.dim()), key=row.param.stride().__getitem__, reverse=True)
        row = row.map(lambda t: t.permute(order))
        if not all_contiguous(row):
            return None
    param, grad, exp_avg, second, max_second, start = row
    return Row(
        param.view(-1),
        grad.view(-1),
        exp_avg.view(-1),
        second.view(-1),
        None if max_second is None else max_second.view(-1),
        None if start is None else start.view(-1),
    )
