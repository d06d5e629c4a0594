"""The recorder in raw loops: what it records, and that training doesn't notice it."""

import copy
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
from torch import nn

from hf_proxadam.scales import GradientScaleRecorder, load


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(24, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def batch(step: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 20, (size, 3), generator=generator), torch.randint(0, 2, (size,), generator=generator)


def backward(model: nn.Module, step: int) -> None:
    tokens, labels = batch(step)
    nn.functional.cross_entropy(model(tokens), labels).backward()


def records(folder: Path) -> pandas.DataFrame:
    return load(folder).to_pandas().set_index(["step", "parameter", "quantity"])


def assert_row(row: pandas.Series, values: torch.Tensor) -> None:
    x = values.double().reshape(-1).numpy()
    nonzero = numpy.abs(x[x != 0])
    assert row["rms"] == pytest.approx(numpy.sqrt((x**2).mean()), rel=1e-12)
    assert row["max"] == numpy.abs(x).max()
    assert row["min_nonzero"] == nonzero.min()
    assert row["zeros"] == (x == 0).sum()
    assert row["numel"] == len(x)
    assert row["nonfinite"] == 0
    assert sum(row["histogram"]) == len(nonzero)
    exponents = numpy.frexp(nonzero)[1] - 1
    assert row["histogram"][exponents.min() + 149] == (exponents == exponents.min()).sum()


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    "adamw tensor lr": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(1e-2)),
    "adamw fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_records_what_happened(name: str, tmp_path: Path) -> None:
    model = make()
    optimizer = OPTIMIZERS[name](model.parameters())
    seen = {}
    with GradientScaleRecorder(model, optimizer, tmp_path, every=2):
        for step in range(1, 6):
            backward(model, step)
            before = {key: value.detach().clone() for key, value in model.named_parameters()}
            gradients = {key: value.grad.clone() for key, value in model.named_parameters()}
            optimizer.step()
            for key, value in model.named_parameters():
                assert torch.equal(value.grad, gradients[key])
                seen[step, key] = gradients[key], value.detach() - before[key], before[key]
            optimizer.zero_grad()
    table = records(tmp_path)
    assert sorted(set(table.index.get_level_values("step"))) == [2, 4]
    assert len(table) == 2 * 3 * len(list(model.parameters()))
    for (step, parameter, quantity), row in table.iterrows():
        assert_row(row, seen[step, parameter][["gradient", "update", "weight"].index(quantity)])
        assert row["learning_rate"] == pytest.approx(0.1 if name == "sgd" else 1e-2)
        assert row["module"] == parameter.rpartition(".")[0]
        assert (row["clip_factor"], row["sampled_share"]) == (1.0, 1.0)


def test_training_does_not_notice(tmp_path: Path) -> None:
    def train(folder: Path | None) -> tuple[Any, ...]:
        model = make()
        model.append(nn.Dropout(0.5))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        recorder = None if folder is None else GradientScaleRecorder(model, optimizer, folder, every=1)
        for step in range(3):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
        if recorder is not None:
            recorder.close()
        return model.state_dict(), optimizer.state_dict(), torch.get_rng_state()

    with_recorder, without = train(tmp_path), train(None)
    torch.testing.assert_close(with_recorder[0], without[0], rtol=0, atol=0)
    torch.testing.assert_close(with_recorder[1], without[1], rtol=0, atol=0)
    assert torch.equal(with_recorder[2], without[2])


def test_sampling_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    model = nn.Linear(1024, 512)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = torch.get_rng_state()
    with GradientScaleRecorder(model, optimizer, tmp_path / "sampled", every=1):
        model.weight.grad = model.weight.detach().clone()
        optimizer.step()
    assert torch.equal(torch.get_rng_state(), state)
    row = records(tmp_path / "sampled").loc[(1, "weight", "gradient")]
    assert row["sampled_share"] == 2**16 / 2**19
    assert sum(row["histogram"]) == pytest.approx(2**19)
    with GradientScaleRecorder(model, optimizer, tmp_path / "exact", every=1, exact_histograms=True):
        optimizer.step()
    assert records(tmp_path / "exact").loc[(1, "weight", "gradient")]["sampled_share"] == 1.0


def test_accumulation_gives_the_same_record(tmp_path: Path) -> None:
    tables = []
    for parts in (1, 4):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with GradientScaleRecorder(model, optimizer, tmp_path / str(parts), every=1):
            tokens, labels = batch(0)
            for x, y in zip(tokens.chunk(parts), labels.chunk(parts), strict=True):
                (nn.functional.cross_entropy(model(x), y) / parts).backward()
            optimizer.step()
        tables.append(records(tmp_path / str(parts)))
    pandas.testing.assert_series_equal(tables[0]["rms"], tables[1]["rms"], rtol=1e-4)


def test_groups_frozen_and_unused_parameters(tmp_path: Path) -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2), "frozen": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    foreign = nn.Parameter(torch.ones(3))
    foreign.grad = torch.ones(3)
    groups = [
        {"params": [model["unused"].weight, foreign], "lr": 0.5},
        {"params": [model["used"].weight, model["used"].bias, model["frozen"].weight]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with GradientScaleRecorder(model, optimizer, tmp_path, every=1):
        model["used"](torch.ones(1, 2)).sum().backward()
        optimizer.step()
    table = records(tmp_path)
    quantities = table.reset_index().groupby("parameter", sort=False)["quantity"].apply(list)
    everything = ["gradient", "update", "weight"]
    assert quantities.to_dict() == {
        "used.weight": everything,
        "used.bias": everything,
        "unused.weight": ["update", "weight"],
        "optimizer.group0.1": everything,
    }
    assert table.loc[(1, "used.bias", "weight"), "learning_rate"] == 0.1
    assert table.loc[(1, "unused.weight", "weight"), "learning_rate"] == 0.5
    assert table.loc[(1, "unused.weight", "update"), "zeros"] == 4
    assert pandas.isna(table.loc[(1, "unused.weight", "update"), "min_nonzero"])


def test_unusual_parameters(tmp_path: Path) -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(10, 4, sparse=True)})
    model.register_parameter("empty", nn.Parameter(torch.ones(0, 3)))
    model.register_parameter("complex", nn.Parameter(torch.ones(5, dtype=torch.complex64)))
    model.register_parameter("image", nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)))
    model.register_parameter("wide", nn.Parameter(torch.full((3,), 1e-60, dtype=torch.float64)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.image.detach().clone()
    with GradientScaleRecorder(model, optimizer, tmp_path, every=1):
        loss = model["embedding"](torch.tensor([3, 3, 5])).sum() + model.complex.abs().sum() + (model.image**2).sum()
        (loss + model.wide.sum() + model.empty.sum()).backward()
        optimizer.step()
    table = records(tmp_path).loc[1]
    sparse = table.loc[("embedding.weight", "gradient")]
    assert (sparse["zeros"], sparse["sum_squares"], sparse["finite"]) == (32, 4 * 4 + 4 * 1, 40)
    assert sparse["sampled_share"] == 1.0
    assert table.loc[("complex", "weight"), "numel"] == 10
    assert_row(table.loc[("image", "update")], model.image.detach() - before)
    assert table.loc[("wide", "weight"), "rms"] == pytest.approx(1e-60)
    assert pandas.isna(table.loc[("empty", "gradient"), "rms"])


def test_closure_has_its_gradient_recorded(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).sum() * 7
        loss.backward()
        return loss

    with GradientScaleRecorder(model, optimizer, tmp_path, every=1):
        optimizer.step(closure)
    assert records(tmp_path).loc[(1, "weight", "gradient"), "rms"] == pytest.approx(7.0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_gradscaler_gives_the_same_record(fused: bool, unscale: bool, tmp_path: Path) -> None:
    for scale in (1.0, 2.0**10):
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with GradientScaleRecorder(model, optimizer, tmp_path / str(scale), every=1):
            for step in range(2):
                tokens, labels = batch(step)
                scaler.scale(nn.functional.cross_entropy(model(tokens), labels)).backward()
                if unscale:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    one, other = (records(tmp_path / str(scale)) for scale in (1.0, 2.0**10))
    pandas.testing.assert_series_equal(one["rms"], other["rms"], rtol=1e-4)
    assert one.loc[(1, "4.weight", "gradient"), "rms"] > 1e-3


def test_skipped_step(tmp_path: Path) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with GradientScaleRecorder(model, optimizer, tmp_path, every=1) as recorder:
        backward(model, 0)
        model[4].bias.grad[0] = torch.inf
        recorder.step_skipped()
        assert recorder.step == 1
    table = records(tmp_path)
    assert table.loc[(1, "4.bias", "gradient"), "nonfinite"] == 1
    assert (table.xs("update", level="quantity")["max"] == 0).all()


def test_clip_factor(tmp_path: Path) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    raw = []
    with GradientScaleRecorder(model, optimizer, tmp_path, every=1) as recorder:
        for step, max_norm in enumerate((1e3, 1e-3, None)):
            backward(model, step)
            raw.append(float(model[4].weight.grad.double().square().mean().sqrt()))
            if max_norm is not None:
                recorder.clipped(nn.utils.clip_grad_norm_(model.parameters(), max_norm), max_norm)
            optimizer.step()
            optimizer.zero_grad()
        recorder.clipping_unknown()
        backward(model, 4)
        optimizer.step()
    table = records(tmp_path).xs(("4.weight", "gradient"), level=("parameter", "quantity"))
    assert table["clip_factor"].iloc[1] < 0.1
    assert table["clip_factor"].iloc[[0, 2]].tolist() == [1.0, 1.0]
    assert pandas.isna(table["clip_factor"].iloc[3])
    assert (table["rms"] / table["clip_factor"]).iloc[:3].tolist() == pytest.approx(raw, rel=1e-5)


def test_optimizer_is_left_as_it_was(tmp_path: Path) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    recorder = GradientScaleRecorder(model, optimizer, tmp_path, every=1)
    backward(model, 0)
    copy.deepcopy(optimizer).step()
    optimizer.step()
    recorder.close()
    recorder.close()
    optimizer.step()
    assert recorder.step == 1
    assert set(load(tmp_path)["step"].to_pylist()) == {1}
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_summary_is_given_once(tmp_path: Path) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with GradientScaleRecorder(model, optimizer, tmp_path, every=2) as recorder:
        backward(model, 0)
        optimizer.step()
        assert recorder.summary() == {}
        optimizer.step()
        gradients = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()]).double()
        summary = recorder.summary()
        assert summary["scales/gradient_rms"] == pytest.approx(float(gradients.square().mean().sqrt()))
        assert summary["scales/gradient_zeros"] == pytest.approx(float((gradients == 0).double().mean()))
        ratio = summary["scales/update_rms"] / summary["scales/weight_rms"]
        assert summary["scales/update_to_weight"] == pytest.approx(ratio)
        modules = [[model[0].weight], *([model[i].weight, model[i].bias] for i in (2, 3, 4))]
        log2_rms = [
            float(
                torch.cat([parameter.grad.reshape(-1) for parameter in module]).double().square().mean().sqrt().log2()
            )
            for module in modules
        ]
        low, high = numpy.quantile(log2_rms, [0.25, 0.75])
        assert summary["scales/gradient_spread_between"] == pytest.approx(high - low)
        assert recorder.summary() == {}


@pytest.mark.parametrize(
    ("argument", "value"),
    [("every", 0), ("every", -1), ("every", 2.0), ("every", True), ("sample_size", 100), ("records_per_part", 0)],
)
def test_numbers_out_of_range_are_refused(argument: str, value: Any, tmp_path: Path) -> None:
    model = make()
    with pytest.raises(ValueError, match=f"^{argument} must be a whole number of at least"):
        GradientScaleRecorder(model, torch.optim.SGD(model.parameters()), tmp_path, **{argument: value})


def test_deepspeed_and_fsdp1_are_refused(tmp_path: Path) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters())
    engine = type("DeepSpeedEngine", (nn.Module,), {"__module__": "deepspeed.runtime.engine"})()
    with pytest.raises(ValueError, match="under DeepSpeed"):
        GradientScaleRecorder(engine, optimizer, tmp_path)
    zero = type("ZeroOptimizer", (torch.optim.SGD,), {"__module__": "deepspeed.runtime"})(model.parameters())
    with pytest.raises(ValueError, match="under DeepSpeed"):
        GradientScaleRecorder(model, zero, tmp_path)
    sharded = nn.Sequential(type("FullyShardedDataParallel", (nn.Module,), {})())
    with pytest.raises(ValueError, match="FSDP version 1"):
        GradientScaleRecorder(sharded, optimizer, tmp_path)
