"""What a torch.optim optimizer can do: groups, layouts, complex numbers, closures, hooks, scalers, compiled steps."""

import math

import pytest
import torch

from hf_proxadam.optim import ProxAdam

from .cases import PATHS, Case, all_cases, registered_cases, step_with


@all_cases
def test_complex_parameters_are_pairs_of_reals(case: Case) -> None:
    pair = torch.randn(6, 2)
    real = torch.nn.Parameter(pair.clone())
    complex_ = torch.nn.Parameter(torch.view_as_complex(pair.clone()))
    optimizers = case.make([real], lr=0.01), case.make([complex_], lr=0.01)
    for seed in range(4):
        real.grad = torch.randn(pair.shape, generator=torch.Generator().manual_seed(seed))
        complex_.grad = torch.view_as_complex(real.grad.clone())
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(torch.view_as_real(complex_.detach()), real.detach(), rtol=1e-6, atol=1e-7)
    assert optimizers[1].state[complex_]["exp_avg"].is_complex()


@all_cases
@pytest.mark.parametrize("path", ["pieces", "single"])
def test_gradients_from_behind_a_complex_conjugate(case: Case, path: str) -> None:
    """They carry the marks of a negative and of a conjugate that torch has yet to compute."""
    values = torch.randn(3, generator=torch.Generator().manual_seed(0)).tolist()
    real, imaginary = (torch.nn.Parameter(torch.tensor(value)) for value in values[:2])
    whole = torch.nn.Parameter(torch.tensor([complex(*values[1:])]))
    params = [real, imaginary, whole]
    product = torch.complex(real, imaginary).conj()
    ((product * product * (1 + 2j)).real.sum() + (whole.conj() * (1 + 2j)).sum().abs()).backward()
    assert imaginary.grad.is_neg()
    assert whole.grad.is_conj()
    plain = [torch.nn.Parameter(p.detach().clone()) for p in params]
    for p, q in zip(params, plain, strict=True):
        q.grad = p.grad.resolve_conj().resolve_neg().clone()
    for optimized in (params, plain):
        case.make(optimized, lr=0.01, **PATHS[path]).step()
    for p, q in zip(params, plain, strict=True):
        assert torch.equal(p, q)


@all_cases
@pytest.mark.parametrize("path", ["pieces", "single"])
@pytest.mark.parametrize("numel", [3, 300_000])
def test_backward_is_refused_after_a_step(case: Case, path: str, numel: int) -> None:
    """As torch refuses it: what the graph saved is no longer there."""
    param = torch.nn.Parameter(torch.ones(numel))
    optimizer = case.make([param], lr=0.01, **PATHS[path])
    loss = (param**3).sum()
    param.grad = torch.ones(numel)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@all_cases
@pytest.mark.parametrize("path", [path for path in PATHS if path != "compiled"])
def test_a_state_of_another_size_is_refused(case: Case, path: str) -> None:
    """Torch's kernel would read and write past its end. The step is not counted."""
    param = torch.ones(3) if path == "differentiable" else torch.nn.Parameter(torch.ones(3))
    optimizer = case.make([param], lr=0.01, **PATHS[path])
    param.grad = torch.ones(3)
    optimizer.step()
    before = param.detach().clone()
    optimizer.state[param]["exp_avg"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"exp_avg has shape \(2,\) for a parameter of shape \(3,\): load the state"):
        optimizer.step()
    assert torch.equal(param, before)
    assert optimizer.state[param]["step"] == 1


@registered_cases
@pytest.mark.parametrize("shape", [None, (), (1,), (1, 1)], ids=["float", "0-d", "1-d", "2-d"])
@pytest.mark.parametrize("path", ["pieces", "single", "capturable", "differentiable"])
def test_lr_as_a_tensor(case: Case, shape: tuple[int, ...] | None, path: str) -> None:
    lr = 0.01 if shape is None else torch.full(shape, 0.01, dtype=torch.float64)
    expected, param = torch.ones(3), torch.ones(3)
    step_with(case.make([expected], lr=0.01), [expected])
    step_with(case.make([param], lr=lr, **PATHS[path]), [param])
    assert param.shape == (3,)
    torch.testing.assert_close(param, expected, rtol=3e-7, atol=0)


@registered_cases
def test_groups_layouts_and_dtypes_in_one_optimizer(case: Case) -> None:
    """Frozen parameters, parameters without gradients, and groups with their own options, each as if it were alone."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(4, 5, generator=generator).to(d) for d in (torch.float32, torch.bfloat16, torch.float64)]
    together = [torch.nn.Parameter(v.clone()) for v in values]
    frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    unused = torch.nn.Parameter(torch.ones(3))
    options = [{"lr": 0.01}, {"lr": 0.1, "weight_decay": 0.0}, {"lr": 0.02, "betas": (0.5, 0.9), "foreach": False}]
    optimizer = case.make([{"params": [p], **o} for p, o in zip(together, options, strict=True)])
    optimizer.add_param_group({"params": [frozen, unused]})
    alone = [torch.nn.Parameter(v.clone()) for v in values]
    others = [case.make([p], **o) for p, o in zip(alone, options, strict=True)]
    for seed in range(5):
        for p, q in zip(together, alone, strict=True):
            p.grad = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).to(p.dtype)
            q.grad = p.grad.clone()
        if seed == 2:
            together[0].grad = alone[0].grad = None
        optimizer.step()
        for other in others:
            other.step()
    for p, q in zip(together, alone, strict=True):
        assert torch.equal(p.detach(), q.detach())
    assert frozen.tolist() == unused.tolist() == [1, 1, 1]
    assert optimizer.state[together[0]]["step"] == 4
    assert unused not in optimizer.state


@all_cases
@pytest.mark.parametrize("path", [pytest.param(p, marks=pytest.mark.slow if p == "compiled" else ()) for p in PATHS])
def test_parameters_of_a_group_count_their_own_steps(case: Case, path: str) -> None:
    """A layer that is used less often than its neighbours is updated as if it were alone."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(4, 5, generator=generator) for _ in range(3)]
    together, alone = ([torch.nn.Parameter(v.clone()) for v in values] for _ in range(2))
    if path == "differentiable":
        together, alone = ([p.detach() for p in params] for params in (together, alone))
    optimizer = case.make(together, lr=0.01, **PATHS[path])
    others = [case.make([p], lr=0.01, **PATHS[path]) for p in alone]
    for step in range(6):
        for i, (ours, theirs) in enumerate(zip(together, alone, strict=True)):
            used = step % (i + 1) == i
            grad = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
            ours.grad, theirs.grad = (grad if used else None, grad.clone() if used else None)
            if used:
                others[i].step()
        optimizer.step()
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-6, atol=1e-7)


def test_named_parameters_and_closures_and_hooks() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = ProxAdam(model.named_parameters(), lr=0.1)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 2)).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(60)]
    assert losses[-1] < 0.01 * losses[0]
    assert seen[:2] == ["before", "after"]
    assert ProxAdam(model.named_parameters()).param_groups[0]["params"] == list(model.parameters())


@registered_cases
def test_differentiable_steps(case: Case) -> None:
    """The derivative of two steps by the gradient and the moments, against finite differences."""

    def two_steps(x: torch.Tensor, grad: torch.Tensor, m: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        optimizer = case.make([x], lr=0.3, differentiable=True)
        x.grad = grad
        key = "exp_avg_sq_root" if case.scale_free else "exp_avg_sq"
        optimizer.state[x] = {"step": torch.tensor(4.0), "exp_avg": m.clone(), key: second.clone()}
        optimizer.step()
        x.grad = grad * x.detach().sum().sign()
        optimizer.step()
        return x

    generator = torch.Generator().manual_seed(0)
    inputs = [torch.rand(4, generator=generator, dtype=torch.float64) + 0.1 for _ in range(4)]
    assert torch.autograd.gradcheck(two_steps, [t.requires_grad_() for t in inputs])


@registered_cases
@pytest.mark.parametrize("overflow", [False, True])
def test_grad_scaler(case: Case, overflow: bool) -> None:
    param, expected = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer, other = case.make([param], lr=0.1), case.make([expected], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(3):
        data = torch.tensor([1.0, -2.0, float("inf") if overflow and t == 1 else 3.0])
        optimizer.zero_grad()
        scaler.scale((param * data).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        if data.isfinite().all():
            expected.grad = data.clone()
            other.step()
    torch.testing.assert_close(param, expected, rtol=1e-6, atol=0)
    assert optimizer.state[param]["step"] == (2 if overflow else 3)


def test_a_compiled_training_step() -> None:
    def train(compiled: bool) -> torch.Tensor:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = ProxAdam([weight], lr=0.1)

        def step() -> None:
            optimizer.zero_grad()
            (weight * torch.arange(3.0)).square().sum().backward()
            optimizer.step()

        run = torch.compile(step, backend="eager") if compiled else step
        for _ in range(4):
            run()
        return weight.detach()

    torch.testing.assert_close(train(True), train(False))


@registered_cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_of_low_precision_parameters_are_float32(case: Case, dtype: torch.dtype) -> None:
    param = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer = case.make([param], amsgrad=True)
    step_with(optimizer, [param])
    moments = {k: v.dtype for k, v in optimizer.state[param].items()}
    assert set(moments.values()) == {torch.float32}
    assert param.dtype == dtype


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_scratch_memory_does_not_grow_with_the_model(eps: float) -> None:
    from torch.profiler import ProfilerActivity, profile

    peaks = []
    for rows, small in ((1000, 40), (16_000, 640)):
        params = [
            torch.nn.Parameter(torch.randn(rows, 512)),
            *(torch.nn.Parameter(torch.randn(8000)) for _ in range(small)),
        ]
        optimizer = ProxAdam(params, eps=eps)
        step_with(optimizer, params)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            optimizer.step()
        events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        peaks.append(peak)
    assert max(peaks) < 8e6
    assert peaks[1] == pytest.approx(peaks[0], rel=0.1)


@registered_cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bfloat16", "float64"])
def test_the_default_dtype_does_not_round_the_step_count(case: Case, dtype: torch.dtype) -> None:
    """bf16 has no 257: a count kept in the default dtype would stay at 256, and the bias correction with it."""

    def run() -> tuple[torch.Tensor, float]:
        param = torch.ones(3, dtype=torch.float32)
        optimizer = case.make([param], lr=1e-3, betas=(0.9, 0.9999))
        generator = torch.Generator().manual_seed(0)
        for _ in range(300):
            param.grad = torch.randn(3, generator=generator, dtype=torch.float32)
            optimizer.step()
        return param, optimizer.state[param]["step"].item()

    expected, steps = run()
    torch.set_default_dtype(dtype)
    try:
        found, counted = run()
    finally:
        torch.set_default_dtype(torch.float32)
    assert counted == steps == 300
    assert torch.equal(found, expected)


def test_channels_last_state_follows_the_parameter() -> None:
    param = torch.nn.Parameter(torch.randn(64, 64, 3, 3).to(memory_format=torch.channels_last))
    optimizer = ProxAdam([param])
    param.grad = torch.randn(64, 64, 3, 3).to(memory_format=torch.channels_last)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].stride() == param.stride()
    assert math.isfinite(param.sum().item())
