"""The body compiled into one loop over a tensor, called for many tensors at once."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .pieces import Bucket, all_contiguous, flatten, pieces, scatter
from .rounding import is_low_precision, noise_for
from .update import Betas, Form, Scalars, adam_update

# Rows of a compiled call, for a few and for more: what a call costs beside its work is paid once for all of them. Forty
# take about twenty seconds to compile.
_ROWS_AT_ONCE = (8, 40)
_SCRATCH = 2**19  # in elements: what is gathered, or drawn as noise, before a call is made
_CHECKED = ("SHAPE_ENV", "GLOBAL_STATE", "GRAD_MODE", "DETERMINISTIC_ALGORITHMS")  # by torch, at each guarded call


def _compiler_options() -> dict[str, Any]:
    """Leaves out what a call need not check again: kind and layout of the rows are fixed by `structure` and `pieces`.

    What is checked still: that the sizes of a row agree, and torch's state (threads, determinism, autocast, gradients).
    """
    options: dict[str, Any] = {"size_asserts": False}
    if hasattr(torch.compiler, "skip_all_guards_unsafe"):  # this torch can be told which checks to make
        options["guard_filter_fn"] = lambda guards: [guard.guard_type in _CHECKED for guard in guards]
    return options


class _Rows:
    """The body over `count` dense rows, compiled.

    torch.compile checks its guards and reads the size of each row at every call, which for forty rows takes as long as
    updating a million parameters. On the CPU what it compiled is therefore kept, with the order of its arguments, and
    called itself: it takes addresses and lengths, so that not even flat views are needed. Other devices stay behind the
    guards, for there the compiler may choose 32-bit indices by size; so does what the compiler was told to leave eager.
    """

    def __init__(self, form: Form, betas: Betas, structure: tuple[Any, ...], count: int) -> None:
        def update_rows(rows: list[Any], numbers: Tensor) -> None:
            scalars = Scalars(betas, *numbers.unbind())
            for row in rows:
                adam_update(*row, scalars, form)  # type: ignore[call-arg]

        # The compiler counts recompilations by code object and gives up after a few: each form gets one of its own.
        update_rows.__code__ = update_rows.__code__.replace(co_name=f"update_rows_{form.rule}")
        seen: list[tuple[Callable[..., Any], tuple[Any, ...]]] | None = []

        def backend(graph: Any, inputs: list[Any], options: dict[str, Any]) -> Callable[..., Any]:
            inductor: Any = torch._dynamo.lookup_backend("inductor")
            loop = inductor(graph, inputs, config_patches=options)

            def call(*args: Any) -> Any:
                if seen is not None:
                    seen.append((loop, args))
                return loop(*args)

            return call

        compiled = torch.compile(
            update_rows, dynamic=True, fullgraph=True, backend=backend, options=_compiler_options()
        )
        dtype, device = structure[2][0], structure[0][1].type  # of the arithmetic, and of all rows
        self._guarded = torch.autocast(device, enabled=False)(compiled)
        # Traced over rows of sizes that all differ, for sizes that are equal now would have to be equal for ever; and
        # large ones, for which the compiler makes loops that run in parallel.
        rows, numbers = _idle_rows(structure, 2**16, count), torch.ones(len(Scalars._fields) - 1, dtype=dtype)
        self._guarded(rows, numbers)
        self._loop = _by_values(*seen[0], _values(rows, numbers)) if device == "cpu" and seen else None
        seen = None
        self._idle = _idle_rows(structure, 16, count)

    def __call__(self, rows: list[tuple[Any, ...]], numbers: Tensor) -> None:
        rows = rows + self._idle[len(rows) :]
        if self._loop is not None:
            self._loop(_values(rows, numbers))
        else:
            self._guarded([tuple(None if t is None else t.view(-1) for t in row) for row in rows], numbers)


def _values(rows: list[tuple[Any, ...]], numbers: Tensor) -> list[Any]:
    """Whatever changes from call to call: the tensors, the sizes and the numbers."""
    return [*(t for row in rows for t in row if t is not None), *(row[0].numel() for row in rows), numbers]


def _by_values(
    loop: Callable[..., Any], args: tuple[Any, ...], values: list[Any]
) -> Callable[[list[Any]], None] | None:
    """`loop`, once called with `args`, as a function of `values`, which were among them; the others are constants.

    None where an argument is a number and not among the values, for it may be another one at the next call.
    """

    def identity(value: Any) -> tuple[type, int]:
        return (Tensor, value.data_ptr()) if isinstance(value, Tensor) else (int, value)

    places = {identity(value): place for place, value in enumerate(values)}
    constants = [arg for arg in args if identity(arg) not in places]
    if not all(isinstance(arg, Tensor) for arg in constants):
        return None
    places |= {identity(constant): len(values) + i for i, constant in enumerate(constants)}
    order = [places[identity(arg)] for arg in args]

    def call(values: list[Any]) -> None:
        values = values + constants
        loop(*[values[place] for place in order])

    return call


@functools.lru_cache(maxsize=64)
def compiled_rows(form: Form, betas: Betas, structure: tuple[Any, ...], count: int, threads: int) -> _Rows:
    """The body over up to `count` dense rows. `structure` is the dtype and device of each tensor of a row.

    `threads` are those that the loop is compiled for.
    """
    return _Rows(form, betas, structure, count)


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
        update = compiled_rows(form, scalars.betas, structure, count, torch.get_num_threads())
        update([filled for filled, _ in chunk], numbers)
        for filled, flat in chunk:
            scatter(filled, flat)
        chunk.clear()

    for piece, flat in pieces(bucket, scalars, replace(form, functional=False), whole=True):
        row = piece if all_contiguous(piece) else flatten(piece)
        if row is None or piece.param.numel() == 1:
            # What has gaps and no flat view, and single numbers: these would each be compiled anew.
            adam_update(*piece, noise_for(piece.param, generators), scalars, form)
            scatter(piece, flat)
            continue
        chunk.append(((*row, noise_for(row.param, generators)), flat))
        scratch += row.param.numel() if noisy or flat else 0
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
