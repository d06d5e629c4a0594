"""The compiled path: when it compiles, what reaches the loop, and how it is called."""

from typing import Any

import pytest
import torch

from hf_proxadam.optim import ProxAdam, compiled
from hf_proxadam.optim.compiled import _by_values, compiled_rows

from .cases import step_with


def test_compiled_steps_are_compiled_once() -> None:
    """Whatever the sizes, the step and the learning rate; a proximal map is the same object at every step."""
    compiled_rows.cache_clear()
    for shapes in ([(5000,), (9000,), (9000,), (300,)], [(20_000,), (7, 3)]):
        params = [torch.nn.Parameter(torch.ones(s)) for s in shapes]
        optimizer = ProxAdam(params, lr=0.01, weight_decay=0.1, proximal="elastic_net", compile=True)
        for seed in range(3):
            optimizer.param_groups[0]["lr"] *= 0.9
            step_with(optimizer, params, seed)
    assert compiled_rows.cache_info().misses == 1
    compiles = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    step_with(optimizer, params)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiles
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    step_with(optimizer, params)
    torch.set_num_threads(threads)
    assert compiled_rows.cache_info().misses == 2, "the loop has its number of threads built in"


def test_what_the_loop_was_not_compiled_for_does_not_reach_it() -> None:
    """It no longer checks its tensors at each call: gaps and other dtypes go elsewhere, a wrong size is an error."""
    ends = []
    for compile_ in (False, True):
        params = [torch.nn.Parameter(torch.ones(18_000)[::n]) for n in (1, 2, 1, 1)]
        optimizer = ProxAdam(params, lr=0.01, weight_decay=0.1, compile=compile_)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            for param, n in zip(params, (1, 1, 2, 1), strict=True):
                param.grad = torch.randn(n * param.numel(), generator=generator)[::n]
            optimizer.step()
            for name in ("exp_avg", "exp_avg_sq"):
                optimizer.state[params[0]][name] = optimizer.state[params[0]][name].double()
        ends.append(params)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-7)
    optimizer.state[params[3]]["exp_avg"] = torch.zeros(17_000)
    with pytest.raises(ValueError, match="exp_avg has shape"):
        optimizer.step()


@pytest.mark.parametrize("without", ["_guarded", "_loop"])
def test_compiled_steps_with_and_without_guards(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's need none, other devices keep them; tensors have any number of dimensions, in one order in memory."""

    def run(compile_: bool) -> list[torch.nn.Parameter]:
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s)) for s in ((90, 100), (9000,), (30, 40, 3, 3))]
        params[2].data = params[2].data.to(memory_format=torch.channels_last)
        optimizer = ProxAdam(
            params, lr=0.01, weight_decay=0.1, amsgrad=True, proximal="l2_start", start="current", compile=compile_
        )
        for seed in range(3):
            before = [p._version for p in params]
            step_with(optimizer, params, seed)
            assert all(p._version > v for p, v in zip(params, before, strict=True))
        return params

    def rows_without(*args: Any) -> Any:
        rows = compiled_rows(*args)
        monkeypatch.setattr(rows, without, None)
        return rows

    expected = run(False)
    compiled_rows.cache_clear()
    monkeypatch.setattr(compiled, "compiled_rows", rows_without)
    torch.testing.assert_close(run(True), expected, rtol=1e-6, atol=1e-7)
    assert compiled_rows.cache_info().misses == 1


def test_what_torch_is_told_to_leave_eager_is_left() -> None:
    ends = []
    for compile_ in (False, True):
        param = torch.nn.Parameter(torch.ones(90, 100))
        optimizer = ProxAdam([param], lr=0.01, weight_decay=0.1, compile=compile_)
        compiled_rows.cache_clear()
        with torch.compiler.set_stance("force_eager"):
            for seed in range(3):
                step_with(optimizer, [param], seed)
        ends.append(param)
    compiled_rows.cache_clear()
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-7)


def test_a_compiled_loop_by_its_values() -> None:
    calls: list[tuple[object, ...]] = []
    constant, (first, second), (third, fourth) = torch.ones(()), torch.rand(2, 3).unbind(), torch.rand(2, 4).unbind()

    def loop(*args: object) -> None:
        calls.append(args)

    call = _by_values(loop, (3, second, constant, first), [first, second, 3])
    assert call is not None
    call([third, fourth, 4])
    assert [id(arg) for arg in calls[0]] == [id(4), id(fourth), id(constant), id(third)]
    assert _by_values(loop, (3, 7, second, first), [first, second, 3]) is None, "7 may be another number next time"


@pytest.mark.slow
def test_many_tensors_are_compiled_together() -> None:
    """50 large tensors, and small ones that are gathered: two calls of 40 rows, the second not full, compiled once."""
    compiled_rows.cache_clear()
    shapes = [(9000 + 100 * (i % 7),) for i in range(50)] + [(50,)] * 4
    ends = []
    for compile_ in (False, True):
        params = [torch.nn.Parameter(torch.ones(s)) for s in shapes]
        optimizer = ProxAdam(params, lr=0.01, weight_decay=0.1, eps=0.0, compile=compile_)
        for seed in range(3):
            step_with(optimizer, params, seed)
        ends.append(params)
    assert compiled_rows.cache_info().misses == 1
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-7)
