"""How the update is carried over a group's tensors: whole, in cache-sized pieces, or compiled.

All paths call the one body, `update.adam_update`, and differ only in what they hand it:

- one tensor at a time (`foreach=False`, `capturable`, `differentiable`);
- pieces (the default): large tensors are walked in slices that stay in the processor's cache through all the passes of
  the body, small ones are gathered into one such piece and scattered again, so that the cost of a call to torch is
  paid per piece and not per tensor. Scratch memory is a few pieces, whatever the size of the model;
- compiled (`compile=True`): the body becomes one loop over a tensor; small tensors are gathered as above.
"""

import functools
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .update import Form, Scalars, adam_update, decay_factor, rounded_betas, step_scalars

# In elements. On a CPU a piece of each of five tensors has to fit the cache; a GPU wants few launches instead.
_PIECE = {"cpu": 2**17}
_PIECE_ELSEWHERE = 2**22
_SMALL = {"cpu": 2**13}
_SMALL_ELSEWHERE = 2**18


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
    else:  # copying is several times faster than adding, which wraps a number into a tensor for each
        torch._foreach_copy_(steps, list(torch.tensor(counts).unbind()))
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
        plain = type(param) in (torch.nn.Parameter, Tensor)
        rows.append(row if plain and not param.is_complex() else _plain_row(row, form))

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
        buckets[count, row[0].device, row[0].dtype, row[1].dtype].append(row)
    for (count, device, _, _), bucket in buckets.items():
        dtype = bucket[0].exp_avg.dtype
        scalars = numbers(count, dtype)
        whole = group["foreach"] is False or group["differentiable"] or not _elementwise(form)
        compiles = group["compile"] and lr != 0  # the body's identity at lr = 0 is a branch on a number
        update = _compiled(form) if compiles else adam_update
        if compiles:
            scalars = _as_tensors(scalars, dtype)
        if whole and not group["compile"]:
            for row in bucket:
                update(*row, noise(row), scalars, form)
        else:
            size = None if compiles else _PIECE.get(device.type, _PIECE_ELSEWHERE)
            _in_pieces(bucket, size, _elementwise(form), lambda row: update(*row, noise(row), scalars, form))  # noqa: B023


def _elementwise(form: Form) -> bool:
    return form.proximal is None or form.proximal.elementwise


def _scalars(step: float | Tensor, dtype: torch.dtype, *, group: dict[str, Any], form: Form, lr: Any) -> Scalars:
    betas = rounded_betas(*group["betas"], dtype, form.scale_free)
    decay = decay_factor(group["decay_schedule"] if form.rule != "coupled" else "lr", lr, float(group["initial_lr"]))
    return step_scalars(betas, step, lr, group["eps"], group["weight_decay"], decay)


def _as_tensors(scalars: Scalars, dtype: torch.dtype) -> Scalars:
    """The numbers that change from step to step as 0-d tensors, so that the compiler does not build them in."""
    return Scalars(scalars.betas, *(torch.tensor(float(x), dtype=dtype) for x in scalars[1:]))


@functools.lru_cache(maxsize=64)
def _compiled(form: Form) -> Callable[..., None]:
    # The compiler counts recompilations by code object, and gives up after a few: each form gets one of its own.
    code = adam_update.__code__.replace(co_name=f"adam_update_{form.rule}")
    return torch.compile(types.FunctionType(code, adam_update.__globals__), dynamic=True)


def _noise(generators: dict[torch.device, torch.Generator] | None, row: Row) -> Tensor | None:
    param = row.param
    if generators is None or not is_low_precision(param.dtype):
        return None
    return torch.randint(
        0, 2**16, param.shape, dtype=torch.int32, device=param.device, generator=generators[param.device]
    )


# --- pieces ---------------------------------------------------------------------------------------------------------


def _in_pieces(rows: list[Row], size: int | None, elementwise: bool, update: Callable[[Row], None]) -> None:
    """Call `update` on slices of at most `size` elements (None: whole tensors) and on gathered small tensors."""
    device = rows[0].param.device.type
    limit = _PIECE.get(device, _PIECE_ELSEWHERE)
    few = _SMALL.get(device, _SMALL_ELSEWHERE)
    small: list[Row] = []
    gathered = 0
    for row in rows:
        numel = row[0].numel()
        if numel == 0:
            continue
        if not elementwise:
            # torch.compile (2.13) computes wrong moments for 0-d tensors; as 1-d ones they are right.
            update(row if row.param.dim() else row.map(lambda t: t.view(1)))
        elif numel <= few and _contiguous(row):
            if gathered + numel > limit:
                _gather_update_scatter(small, update)
                small, gathered = [], 0
            small.append(row)
            gathered += numel
        else:
            for piece in _slices(row, size):
                update(piece)
    if small:
        _gather_update_scatter(small, update)


def _contiguous(row: Row) -> bool:
    """Whether a gathered piece can be scattered back into what the update writes to."""
    param, _, exp_avg, second, max_second, _ = row
    written = param.is_contiguous() and exp_avg.is_contiguous() and second.is_contiguous()
    return written and (max_second is None or max_second.is_contiguous())


def _gather_update_scatter(rows: list[Row], update: Callable[[Row], None]) -> None:
    columns = [
        None if column[0] is None else [t if t.dim() == 1 else t.reshape(-1) for t in column]
        for column in zip(*rows, strict=True)
    ]
    gathered = [None if column is None else torch.cat(column) for column in columns]
    update(Row(*gathered))  # type: ignore[arg-type]
    sizes = [row.param.numel() for row in rows]
    for column, whole, written in zip(columns, gathered, _WRITTEN, strict=True):
        if written and column is not None and whole is not None:
            torch.split_with_sizes_copy(whole, sizes, out=column)


def _slices(row: Row, size: int | None) -> Iterator[Row]:
    """The row in pieces of at most `size` elements: of the flat tensors where their layouts agree and have no gaps."""
    flat = _flatten(row)
    numel = row.param.numel()
    if size is None or numel <= size:
        yield flat or row
        return
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
    if not all(t is None or t.is_contiguous() for t in row):
        order = sorted(range(row.param.dim()), key=row.param.stride().__getitem__, reverse=True)
        row = row.map(lambda t: t.permute(order))
        if not all(t is None or t.is_contiguous() for t in row):
            return None
    return row.map(lambda t: t.view(-1))


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
