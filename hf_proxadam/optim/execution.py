"""How the update is carried over a group's tensors: whole, in cache-sized pieces, or compiled.

All paths call the one body, `update.adam_update`, and differ only in what they hand it:

- one tensor at a time (`foreach=False`, `capturable`, `differentiable`);
- pieces (the default): large tensors are walked in slices that stay in the processor's cache through all the passes of
  the body; small ones go to torch's kernel as lists where it serves, or else are gathered into one such piece and
  scattered again, so that the cost of a call to torch is paid per piece and not per tensor. Scratch memory is a few
  pieces, whatever the size of the model;
- compiled (`compile=True`): the body becomes one loop over a tensor; small tensors are taken together as above.
  Row-wise proximal maps and tensors with gaps in memory take the uncompiled body.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .update import (
    Betas,
    Form,
    Scalars,
    adam_update,
    adam_update_many,
    decay_factor,
    ratio_bound,
    rounded_betas,
    step_scalars,
    torch_has_a_kernel,
)

# In elements. On a CPU a piece of each of five tensors has to fit the cache; a GPU wants few launches instead.
_PIECE = {"cpu": 2**18}
_PIECE_ELSEWHERE = 2**22
_GATHERED = {"cpu": 2**17}
_SMALL = {"cpu": 2**13}
_SMALL_ELSEWHERE = 2**18

# Rows of a compiled call, for a few and for more: what a call costs beside its work is paid once for all of them. Forty
# take about twenty seconds to compile.
_ROWS_AT_ONCE = (8, 40)
_SCRATCH = 2**19  # in elements: what is gathered, or drawn as noise, before a call is made
_CHECKED = ("SHAPE_ENV", "GLOBAL_STATE", "GRAD_MODE", "DETERMINISTIC_ALGORITHMS")  # by torch, at each call


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
        return Row(*(None if t is None else change(t) for t in self))  # type: ignore[arg-type]


_WRITTEN = (True, False, True, True, True, False)  # which of them the update writes to


def is_low_precision(dtype: torch.dtype) -> bool:
    """Whether moments of such parameters are kept in float32."""
    return dtype in (torch.bfloat16, torch.float16)


def moment_dtype(param: Tensor) -> torch.dtype:
    """The dtype of a parameter's moments, and of the arithmetic."""
    return torch.float32 if is_low_precision(param.dtype) else param.dtype


def like_param(param: Tensor, values: Tensor | None) -> Tensor:
    """`values` (None: the parameter's own) as a new tensor laid out, sharded and typed like the parameter's moments."""
    new: Any = torch.empty_like(
        param, dtype=moment_dtype(param), memory_format=torch.preserve_format, requires_grad=False
    )
    if values is not None and _is_dtensor(new):
        from torch.distributed.tensor import distribute_tensor

        values = distribute_tensor(values.to(new.device), new.device_mesh, new.placements)
    return new.copy_(param if values is None else values)


def step_group(
    params: list[Tensor],
    states: list[dict[str, Any]],
    group: dict[str, Any],
    form: Form,
    generators: dict[torch.device, torch.Generator] | None,
) -> None:
    """Do one step of the parameters of one group, all of which have gradients.

    Args:
        params: the parameters.
        states: the state of each, complete.
        group: the group's options.
        form: which equations.
        generators: random bits for stochastic rounding, by device; None rounds to nearest.
    """
    steps = [s["step"] for s in states]
    counts = [] if group["capturable"] else [s.item() + 1 for s in steps]
    if group["capturable"]:
        torch._foreach_add_(steps, 1)
    else:  # a number would be wrapped into a tensor for each of them; with alpha, this one is not taken for a number
        torch._foreach_add_(steps, torch.tensor(1.0), alpha=1)
    suffix = "exp_avg_sq_root" if form.scale_free else "exp_avg_sq"
    needs_start = form.proximal is not None and form.proximal.needs_start
    rows = []
    for param, state in zip(params, states, strict=True):
        row = Row(
            param,
            param.grad,  # type: ignore[arg-type]
            state["exp_avg"],
            state[suffix],
            state[f"max_{suffix}"] if form.amsgrad else None,
            state["start"] if needs_start else None,
        )
        kind = type(param)
        plain = (kind is torch.nn.Parameter or kind is Tensor) and not param.is_complex()
        rows.append(row if plain else _plain_row(row, form))

    lr = group["lr"]
    if isinstance(lr, Tensor):
        lr = lr.reshape(()) if group["capturable"] or group["differentiable"] else lr.item()
    numbers = functools.partial(_scalars, group=group, form=form, lr=lr)
    noise = functools.partial(_noise, generators)
    if group["capturable"]:
        for row, step in zip(rows, steps, strict=True):
            adam_update(*row, None, numbers(step.to(row.param.device, torch.float64), row.exp_avg.dtype), form)
        return

    buckets: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row, count in zip(rows, counts, strict=True):
        buckets[count, row[0].device, row[0].dtype, row[1].dtype, row[2].device, row[2].dtype, row[3].dtype].append(row)
    one_by_one = group["differentiable"] or group["foreach"] is False or not _elementwise(form)
    for (count, *_), bucket in buckets.items():
        scalars = numbers(count, bucket[0].exp_avg.dtype)
        if one_by_one:
            for row in bucket:
                adam_update(*row, noise(row), scalars, form)
        elif group["compile"] and lr != 0:  # the identity at lr = 0 is a branch of the body on a number
            _compiled_update(bucket, generators, scalars, form)
        else:
            for piece, small in _pieces(
                bucket, _PIECE.get(bucket[0].param.device.type, _PIECE_ELSEWHERE), scalars, form
            ):
                adam_update(*piece, noise(piece), scalars, form)
                _scatter(piece, small)


def _elementwise(form: Form) -> bool:
    return form.proximal is None or form.proximal.elementwise


def _scalars(step: float | Tensor, dtype: torch.dtype, *, group: dict[str, Any], form: Form, lr: Any) -> Scalars:
    beta1, beta2 = group["betas"]
    if isinstance(beta1, Tensor):
        betas = Betas(beta1, beta2, beta2**0.5, ratio_bound(beta1.item(), beta2.item()))
    else:
        betas = rounded_betas(beta1, beta2, dtype, form.scale_free)
    decay = decay_factor(group["decay_schedule"] if form.rule != "coupled" else "lr", lr, float(group["initial_lr"]))
    return step_scalars(betas, step, lr, group["eps"], group["weight_decay"] * decay, form)


def _noise(generators: dict[torch.device, torch.Generator] | None, row: Row) -> Tensor | None:
    param = row.param
    if generators is None or not is_low_precision(param.dtype):
        return None
    return torch.randint(
        0, 2**16, param.shape, dtype=torch.int32, device=param.device, generator=generators[param.device]
    )


# --- pieces ---------------------------------------------------------------------------------------------------------


def _pieces(rows: list[Row], size: int | None, scalars: Scalars, form: Form) -> Iterator[tuple[Row, list[Row]]]:
    """What is left to update after torch's kernel has taken the small tensors, where it can.

    That is slices of at most `size` elements (None: whole tensors), and small tensors gathered into one.

    Yields:
        A piece, and the rows that it was gathered from: the caller gives them to `_scatter` after the update.
    """
    first = rows[0]
    device = first.param.device.type
    few, many = _SMALL.get(device, _SMALL_ELSEWHERE), _GATHERED.get(device, _PIECE_ELSEWHERE)
    same_dtype = first.param.dtype == first.grad.dtype == first.exp_avg.dtype
    by_kernel = device == "cpu" and same_dtype and torch_has_a_kernel(form, scalars)
    small: list[Row] = []
    gathered = 0
    for row in rows:
        numel = row[0].numel()
        if 0 < numel <= few and _contiguous(row):
            if gathered + numel > many:
                yield from _small(small, by_kernel, scalars, form)
                small, gathered = [], 0
            small.append(row)
            gathered += numel
        elif size is None or 0 < numel <= size:
            if numel:
                yield _flatten(row) or row, []
        else:
            for piece in _slices(row, size):
                yield piece, []
    if small:
        yield from _small(small, by_kernel, scalars, form)


def _small(rows: list[Row], by_kernel: bool, scalars: Scalars, form: Form) -> Iterator[tuple[Row, list[Row]]]:
    columns: list[Any] = [None if column[0] is None else _flat(column) for column in zip(*rows, strict=True)]
    if by_kernel:
        params, grads, exp_avgs, seconds, *_ = columns
        adam_update_many(params, grads, exp_avgs, seconds, scalars, form)
    else:
        yield Row(*(None if column is None else torch.cat(column) for column in columns)), rows  # type: ignore[arg-type]


def _contiguous(row: Row) -> bool:
    """Whether a gathered piece can be scattered back into what the update writes to."""
    param, _, exp_avg, second, max_second, _ = row
    written = param.is_contiguous() and exp_avg.is_contiguous() and second.is_contiguous()
    return written and (max_second is None or max_second.is_contiguous())


def _scatter(piece: tuple[Tensor | None, ...], rows: list[Row]) -> None:
    if rows:
        sizes = [row[0].numel() for row in rows]
        for column, whole, written in zip(zip(*rows, strict=True), piece, _WRITTEN, strict=False):
            if written and whole is not None:
                torch.split_with_sizes_copy(whole, sizes, out=_flat(column))


def _flat(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [t if t.dim() == 1 else t.reshape(-1) for t in tensors]


def _slices(row: Row, size: int) -> Iterator[Row]:
    """The row in pieces of at most `size` elements: of the flat tensors where their layouts agree and have no gaps."""
    flat = _flatten(row)
    numel = row.param.numel()
    if flat is not None:
        row, dim, length = flat, 0, size
    else:  # tensors with gaps or with layouts of their own: cut along the longest dimension
        dim = max(range(row.param.dim()), key=row.param.shape.__getitem__)
        length = max(1, size * row.param.shape[dim] // numel)
    columns = [None if t is None else t.split(length, dim) for t in row]
    for i in range(len(row.param.split(length, dim))):
        yield Row(*(None if column is None else column[i] for column in columns))  # type: ignore[arg-type]


def _flatten(row: Row) -> Row | None:
    """1-d views of all tensors of the row, in the order of the parameter's memory; None where there are none."""
    if not _all_contiguous(row):
        order = sorted(range(row.param.dim()), key=row.param.stride().__getitem__, reverse=True)
        row = row.map(lambda t: t.permute(order))
        if not _all_contiguous(row):
            return None
    param, grad, exp_avg, second, max_second, start = row  # spelt out, for it is done for each tensor at each step
    return Row(
        param.flatten(),
        grad.flatten(),
        exp_avg.flatten(),
        second.flatten(),
        None if max_second is None else max_second.flatten(),
        None if start is None else start.flatten(),
    )


def _all_contiguous(row: Row) -> bool:
    return row.grad.is_contiguous() and _contiguous(row) and (row.start is None or row.start.is_contiguous())


# --- compiled -------------------------------------------------------------------------------------------------------


def _compiler_options() -> dict[str, Any]:
    """Leaves out what a call need not check again: kind and layout of the rows are fixed by `structure` and `_flatten`.

    What is checked still: that the sizes of a row agree, and torch's state (threads, determinism, autocast, gradients).
    """
    options: dict[str, Any] = {"size_asserts": False}
    if hasattr(torch.compiler, "skip_all_guards_unsafe"):  # this torch can be told which checks to make
        options["guard_filter_fn"] = lambda guards: [guard.guard_type in _CHECKED for guard in guards]
    return options


@functools.lru_cache(maxsize=64)
def _compiled(
    form: Form, betas: Betas, structure: tuple[Any, ...], count: int
) -> Callable[[list[tuple[Any, ...]], Tensor], None]:
    """The body over up to `count` 1-d rows. `structure` is the dtype and device of each tensor of a row."""

    def update_rows(rows: list[Any], numbers: Tensor) -> None:
        scalars = Scalars(betas, *numbers.unbind())
        for row in rows:
            adam_update(*row, scalars, form)  # type: ignore[call-arg]

    # The compiler counts recompilations by code object and gives up after a few: each form gets one of its own.
    update_rows.__code__ = update_rows.__code__.replace(co_name=f"update_rows_{form.rule}")
    compiled = torch.compile(update_rows, dynamic=True, fullgraph=True, options=_compiler_options())
    idle: list[tuple[Any, ...]] = []

    def run(rows: list[tuple[Any, ...]], numbers: Tensor) -> None:
        if not idle:
            # Traced over rows of sizes that all differ, for sizes that are equal now would have to be equal for ever;
            # and large ones, for which the compiler makes loops that run in parallel.
            compiled(_idle_rows(structure, 2**16, count), numbers)
            idle.extend(_idle_rows(structure, 16, count))
        compiled(rows + idle[len(rows) :], numbers)

    return run


def _compiled_update(
    rows: list[Row], generators: dict[torch.device, torch.Generator] | None, scalars: Scalars, form: Form
) -> None:
    first = rows[0]
    noisy = generators is not None and is_low_precision(first.param.dtype)
    structure = (
        *(None if t is None else (t.dtype, t.device) for t in first),
        (torch.int32, first.param.device) if noisy else None,
    )
    # As a tensor, for the compiler builds numbers in.
    numbers = torch.tensor(scalars[1:], dtype=first.exp_avg.dtype)
    chunk: list[tuple[tuple[Any, ...], list[Row]]] = []
    scratch = 0

    def run() -> None:
        few, many = _ROWS_AT_ONCE
        count = few if len(chunk) <= few else many
        _compiled(form, scalars.betas, structure, count)([filled for filled, _ in chunk], numbers)
        for filled, small in chunk:
            _scatter(filled, small)
        chunk.clear()

    for piece, small in _pieces(rows, None, scalars, replace(form, functional=False)):
        param, noise = piece.param, _noise(generators, piece) if noisy else None
        if param.dim() != 1 or param.numel() == 1 or not _all_contiguous(piece):
            # What has gaps and no flat view, and single numbers: these would each be compiled anew.
            adam_update(*piece, noise, scalars, form)
            _scatter(piece, small)
            continue
        chunk.append(((param.detach(), *piece[1:], noise), small))
        scratch += param.numel() if noisy or small else 0
        if len(chunk) == max(_ROWS_AT_ONCE) or scratch > _SCRATCH:
            run()
            scratch = 0
    if chunk:
        run()


def _idle_rows(structure: tuple[Any, ...], size: int, count: int) -> list[tuple[Any, ...]]:
    """Rows of zeros, and of no noise, that make up the number; all of different sizes. The update leaves them zero.

    They draw no random bits: a resumed run compiles at another step than an unbroken one, and must find the same bits.
    """
    sizes = (size + 8 * i for i in range(count))
    return [tuple(None if s is None else torch.zeros(n, dtype=s[0], device=s[1]) for s in structure) for n in sizes]


# --- DTensors and complex numbers -----------------------------------------------------------------------------------


def _is_dtensor(tensor: Any) -> bool:
    return hasattr(tensor, "_local_tensor") and hasattr(tensor, "placements")


def _plain_row(row: Row, form: Form) -> Row:
    """Local shards of DTensors, and complex numbers as pairs of real ones."""
    if _is_dtensor(row.param):
        spread = row.param.placements  # type: ignore[attr-defined]
        if not _elementwise(form) and any(p.is_shard() and p.dim != 0 for p in spread):
            assert form.proximal is not None
            raise ValueError(
                f"proximal={form.proximal.name!r} works on whole rows, and a parameter is sharded by {spread}: shard "
                "along dimension 0, or use an elementwise proximal map"
            )
        row = row.map(lambda t: _local(t, spread))
    return row.map(torch.view_as_real) if row.param.is_complex() else row


def _local(tensor: Any, placements: Any) -> Tensor:
    if not _is_dtensor(tensor):
        return tensor
    if tensor.placements != placements:  # a gradient that is still to be reduced
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local()
