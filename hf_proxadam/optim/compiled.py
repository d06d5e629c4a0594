"""The body compiled into one loop over a tensor, called for many tensors at once."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .pieces import Bucket, all_contiguous, pieces, scatter
from .rounding import is_low_precision, noise_for
from .update import Betas, Form, Scalars, adam_update

# Rows of a compiled call, for a few and for more: what a call costs beside its work is paid once for all of them. Forty
# take about twenty seconds to compile.
_ROWS_AT_ONCE = (8, 40)
_SCRATCH = 2**19  # in elements: what is gathered, or drawn as noise, before a call is made
_CHECKED = ("SHAPE_ENV", "GLOBAL_STATE", "GRAD_MODE", "DETERMINISTIC_ALGORITHMS")  # by torch, at each call


def _compiler_options() -> dict[str, Any]:
    """Leaves out what a call need not check again: kind and layout of the rows are fixed by `structure` and `pieces`.

    What is checked still: that the sizes of a row agree, and torch's state (threads, determinism, autocast, gradients).
    """
    options: dict[str, Any] = {"size_asserts": False}
    if hasattr(torch.compiler, "skip_all_guards_unsafe"):  # this torch can be told which checks to make
        options["guard_filter_fn"] = lambda guards: [guard.guard_type in _CHECKED for guard in guards]
    return options


@functools.lru_cache(maxsize=64)
def compiled_rows(
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


def update_compiled(
    bucket: Bucket, generators: dict[torch.device, torch.Generator] | None, scalars: Scalars, form: Form
) -> None:
    """Do one step of a bucket of one kind, by few calls.

    Args:
        bucket: the tensors, all of the same dtypes and on one device.
        generators: random bits for stochastic rounding, by device; None rounds to nearest.
        scalars: the numbers of this step.
        form: which equations; elementwise, and with `functional`.
    """
    first = bucket.take([0]).rows()[0]
    noisy = generators is not None and is_low_precision(first.param.dtype)
    structure = (
        *(None if t is None else (t.dtype, t.device) for t in first),
        (torch.int32, first.param.device) if noisy else None,
    )
    # As a tensor, for the compiler builds numbers in.
    numbers = torch.tensor(scalars[1:], dtype=first.exp_avg.dtype)
    chunk: list[tuple[tuple[Any, ...], Bucket | None]] = []
    scratch = 0

    def run() -> None:
        few, many = _ROWS_AT_ONCE
        count = few if len(chunk) <= few else many
        compiled_rows(form, scalars.betas, structure, count)([filled for filled, _ in chunk], numbers)
        for filled, flat in chunk:
            scatter(filled, flat)
        chunk.clear()

    for piece, flat in pieces(bucket, scalars, replace(form, functional=False), whole=True):
        param, noise = piece.param, noise_for(piece.param, generators)
        if param.dim() != 1 or param.numel() == 1 or not all_contiguous(piece):
            # What has gaps and no flat view, and single numbers: these would each be compiled anew.
            adam_update(*piece, noise, scalars, form)
            scatter(piece, flat)
            continue
        chunk.append(((param.detach() if param.requires_grad else param, *piece[1:], noise), flat))
        scratch += param.numel() if noisy or flat else 0
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
