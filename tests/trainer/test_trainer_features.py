"""What a Trainer does beside plain steps: mixed precision, compiled models, gradient checkpointing, model_init."""

import copy
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from transformers import Trainer

from hf_proxadam.trainer.catalog import CATALOG

from .ways_worker import arguments, rows, tiny_llama

every_name = pytest.mark.parametrize("name", CATALOG)
STEPS = 6


def train(name: str, folder: Path, resume: str | None = None, **options: Any) -> Trainer:
    options = {"max_steps": STEPS, "save_steps": STEPS // 2, **options}
    with mock.patch.dict(os.environ):  # precision and compiler are written there, for the next Trainer to find
        used = Trainer(tiny_llama(), arguments("single", name, folder, **options), train_dataset=rows())
        used.train(resume_from_checkpoint=resume)
    assert used.state.global_step == STEPS
    assert type(used.optimizer.optimizer) is CATALOG[name].cls
    return used


def parameters(used: Trainer) -> dict[str, torch.Tensor]:
    return {k.replace("_orig_mod.", ""): p.detach() for k, p in used.model.named_parameters()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=tolerance)


@every_name
def test_an_overflow_changes_nothing(name: str) -> None:
    """fp16 autocast and a GradScaler on accelerate's optimizer, as in the Trainer, which refuses fp16 on the CPU."""
    Accelerator(cpu=True)  # AcceleratedOptimizer asks for its state
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    entry = CATALOG[name]
    inner = entry.cls(model.parameters(), lr=0.01, weight_decay=0.1, **entry.defaults)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = AcceleratedOptimizer(inner, scaler=scaler)

    def step(batch: torch.Tensor) -> None:
        with torch.autocast("cpu", dtype=torch.float16):
            loss = model(batch).square().mean()
        scaler.scale(loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    def everything() -> tuple[Any, ...]:
        saved = inner.state_dict()
        return copy.deepcopy((model.state_dict(), saved["state"], saved["param_groups"]))

    batches = [torch.randn(8, 4, generator=torch.Generator().manual_seed(t)) for t in range(4)]
    for batch in batches[:2]:
        step(batch)
        assert not optimizer.step_was_skipped
    before, scale = everything(), scaler.get_scale()
    step(batches[2] * 1e8)  # infinite in fp16
    assert optimizer.step_was_skipped
    assert scaler.get_scale() < scale
    after = everything()
    torch.testing.assert_close(after[:2], before[:2], rtol=0, atol=0)
    assert after[2] == before[2]

    # The optimizer saw unscaled gradients: the same loss without a scaler gives the same step, but for fp16's rounding.
    twin_model, twin = copy.deepcopy((model, inner))
    step(batches[3])
    assert not optimizer.step_was_skipped
    twin_model(batches[3]).square().mean().backward()
    twin.step()
    assert {float(state["step"]) for state in inner.state.values()} == {3.0}
    for p, q, old in zip(model.parameters(), twin_model.parameters(), before[0].values(), strict=True):
        assert not torch.equal(p, old)
        torch.testing.assert_close(inner.state[p]["exp_avg"], twin.state[q]["exp_avg"], rtol=1e-2, atol=1e-3)


@every_name
def test_bf16_autocast(name: str, tmp_path: Path) -> None:
    whole = train(name, tmp_path, bf16=True)
    seen = []
    whole.model.model.layers[0].mlp.up_proj.register_forward_hook(lambda module, inputs, output: seen.append(output))
    whole.compute_loss(whole.model, {k: v[None] for k, v in rows()[0].items()})
    assert [output.dtype for output in seen] == [torch.bfloat16], "autocast was not on"
    for p, state in whole.optimizer.optimizer.state.items():
        assert {p.dtype, *(value.dtype for value in state.values())} == {torch.float32}
    exact = parameters(train(name, tmp_path / "exact"))
    differences = [(p - exact[key]).abs().max().item() for key, p in parameters(whole).items()]
    assert 0 < max(differences) < 5e-3  # six steps of at most 1e-3 each
    resumed = train(name, tmp_path, bf16=True, resume=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert_equal(parameters(resumed), parameters(whole))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile(backend: str, tmp_path: Path) -> None:
    """The model is compiled, with the optimizer outside; its checkpoints go on in a model that is not compiled."""
    name = "proxadam_scale_free"
    compiled = train(name, tmp_path / "compiled", torch_compile=True, torch_compile_backend=backend)
    assert isinstance(compiled.model_wrapped, torch._dynamo.OptimizedModule)
    plain = train(name, tmp_path / "plain")
    assert_equal(parameters(compiled), parameters(plain), tolerance=1e-6)
    assert not isinstance(plain.model_wrapped, torch._dynamo.OptimizedModule)
    resumed = train(name, tmp_path / "plain", resume=str(tmp_path / "compiled" / f"checkpoint-{STEPS // 2}"))
    assert_equal(parameters(resumed), parameters(plain), tolerance=1e-6)


@every_name
def test_gradient_checkpointing(name: str, tmp_path: Path) -> None:
    checkpointed = train(name, tmp_path / "checkpointed", gradient_checkpointing=True)
    assert checkpointed.model.is_gradient_checkpointing
    assert_equal(parameters(checkpointed), parameters(train(name, tmp_path / "plain")))


@every_name
def test_model_init(name: str, tmp_path: Path) -> None:
    """The model is made anew by train(): so is the optimizer, with none of the old parameters or moments."""
    args = arguments("single", name, tmp_path, max_steps=STEPS, save_strategy="no")
    used = Trainer(model_init=tiny_llama, args=args, train_dataset=rows())
    used.train()
    first, optimizer = parameters(used), used.optimizer.optimizer
    used.train()
    assert used.optimizer.optimizer is not optimizer
    in_groups = {id(p) for group in used.optimizer.optimizer.param_groups for p in group["params"]}
    assert in_groups == {id(p) for p in used.model.parameters()}
    assert_equal(parameters(used), first)
    assert_equal(parameters(train(name, tmp_path / "plain")), first)
