"""The recorder under the Trainer."""

import json
import types
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_proxadam.scales import GradientScaleCallback, load, whole_model


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.body(x).relu())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Reporter(TrainerCallback):
    """Stands where the Trainer puts the callbacks of tensorboard and its like: before the user's."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.lines.append(dict(logs))


def trainer(folder: Path, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 4, generator=generator)
    data = [{"x": row, "labels": (row.sum() > 0).long()} for row in x]
    settings: dict[str, Any] = {
        "max_grad_norm": 0.0,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 4,
        "save_steps": 10,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = TrainingArguments(str(folder), **{**settings, **options})
    return Trainer(Classifier(), args, train_dataset=data, callbacks=list(callbacks))


def records(folder: Path) -> pandas.DataFrame:
    table = load(folder).to_pandas()
    assert not table.duplicated(["step", "parameter", "quantity"]).any()
    return table


class Watcher(TrainerCallback):
    """Takes gradients and parameters where the Trainer shows them."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for name, parameter in model.named_parameters():
            self.seen[state.global_step + 1, name] = parameter.grad.clone(), parameter.detach().clone()


def test_records_what_the_optimizer_saw(tmp_path: Path) -> None:
    watcher = Watcher()
    trainer(tmp_path, watcher, GradientScaleCallback(every=5), num_train_epochs=1).train()
    table = records(tmp_path / "scales")
    assert sorted(set(table["step"])) == [5, 10]
    assert table["epoch"].tolist() == pytest.approx((table["step"] / 12).tolist())
    for _, row in table[table["quantity"] != "update"].iterrows():
        gradient, weight = watcher.seen[row["step"], row["parameter"]]
        values = gradient if row["quantity"] == "gradient" else weight
        assert row["rms"] == pytest.approx(float(values.double().square().mean().sqrt()), rel=1e-12)
    for _, row in table[table["quantity"] == "update"].iterrows():
        before, after = (watcher.seen[row["step"] + i, row["parameter"]][1].float() for i in (0, 1))
        assert row["max"] == float((after - before).abs().max())
    assert (table["clip_factor"] == 1.0).all()


def test_training_does_not_notice(tmp_path: Path) -> None:
    losses = []
    for callbacks in ([], [GradientScaleCallback(every=1)]):
        run = trainer(tmp_path / str(len(callbacks)), *callbacks, logging_steps=1)
        run.train()
        losses.append([line["loss"] for line in run.state.log_history if "loss" in line])
    assert losses[0] == losses[1]


def test_numbers_join_the_log_line_of_the_loss(tmp_path: Path) -> None:
    reporter = Reporter()
    run = trainer(tmp_path, reporter, GradientScaleCallback(every=8))
    run.train()
    lines = [line for line in reporter.lines if "loss" in line]
    assert ["scales/gradient_rms" in line for line in lines] == [False, True] * 3
    history = [line for line in run.state.log_history if "loss" in line]
    assert [line.get("scales/update_to_weight") for line in history] == [
        line.get("scales/update_to_weight") for line in lines
    ]
    assert all(isinstance(value, float) for name, value in lines[1].items() if name.startswith("scales/"))


def test_numbers_reach_tensorboard_at_the_step_of_the_loss(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(tmp_path, GradientScaleCallback(every=8), report_to=["tensorboard"]).train()
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*")).parent)).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["train/loss"] == [4, 8, 12, 16, 20, 24]
    assert steps["train/scales/gradient_rms"] == steps["train/scales/update_to_weight"] == [8, 16, 24]
    rms = {
        row["step"]: row["rms"]
        for row in whole_model(load(tmp_path / "scales")).to_dict("records")
        if row["quantity"] == "update"
    }
    written = {event.step: event.value for event in events.Scalars("train/scales/update_rms")}
    assert written == pytest.approx(rms, rel=1e-6)


@pytest.mark.parametrize("max_norm", [1e-2, 1e4])
def test_clip_factor_is_recorded(max_norm: float, tmp_path: Path) -> None:
    run = trainer(tmp_path, GradientScaleCallback(every=4), max_grad_norm=max_norm)
    run.train()
    table = records(tmp_path / "scales")
    norms = {line["step"]: float(line["grad_norm"]) for line in run.state.log_history if "loss" in line}
    for _, row in table.iterrows():
        assert row["clip_factor"] == pytest.approx(min(1.0, max_norm / (norms[row["step"]] + 1e-6)), rel=1e-5)
    assert (table["clip_factor"] < 1).all() == (max_norm < 1)
    assert "clip_grad_norm_" not in vars(run.accelerator)


def test_resumed_run_has_the_record_of_an_unbroken_one(tmp_path: Path) -> None:
    trainer(tmp_path / "whole", GradientScaleCallback(every=3)).train()
    whole = records(tmp_path / "whole" / "scales")
    trainer(tmp_path / "broken", GradientScaleCallback(every=3, records_per_part=2)).train()
    for restore in (False, True):
        # The steps 11 to 24 are run again; what is in the files of them is replaced.
        resumed = trainer(
            tmp_path / "broken",
            GradientScaleCallback(every=3, records_per_part=2),
            restore_callback_states_from_checkpoint=restore,
        )
        resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-10"))
        pandas.testing.assert_frame_equal(records(tmp_path / "broken" / "scales"), whole)


def test_checkpoint_holds_the_run_and_its_records_are_written(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    callback = GradientScaleCallback(every=1)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, callback, Stop()).train()
    state = json.loads((tmp_path / "checkpoint-10" / "trainer_state.json").read_text())
    stored = state["stateful_callbacks"]["GradientScaleCallback"]
    assert stored["attributes"]["run"] == callback.run
    assert sorted(set(records(tmp_path / "scales")["step"])) == list(range(1, 11))


def test_recording_may_begin_at_a_checkpoint(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    resumed = trainer(tmp_path, GradientScaleCallback(every=6))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert sorted(set(records(tmp_path / "scales")["step"])) == [12, 18, 24]


def test_another_run_is_refused_or_replaced(tmp_path: Path) -> None:
    trainer(tmp_path, GradientScaleCallback(every=12)).train()
    with pytest.raises(ValueError, match="holds the gradient scales of another run"):
        trainer(tmp_path, GradientScaleCallback(every=6)).train()
    trainer(tmp_path, GradientScaleCallback(every=6, replace=True)).train()
    assert len(set(records(tmp_path / "scales")["step"])) == 4


def test_folder_may_be_chosen(tmp_path: Path) -> None:
    trainer(tmp_path / "run", GradientScaleCallback(every=12, folder=tmp_path / "elsewhere")).train()
    assert len(records(tmp_path / "elsewhere")) == 2 * 4 * 3


def test_skipped_step_is_recorded_with_no_update(tmp_path: Path) -> None:
    class Skip(TrainerCallback):
        """Does what a GradScaler does at an overflow: the optimizer isn't called."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                kwargs["optimizer"].step = lambda: None
            elif state.global_step == 3:
                del kwargs["optimizer"].step

    trainer(tmp_path, Skip(), GradientScaleCallback(every=1), max_steps=5).train()
    table = records(tmp_path / "scales").set_index(["step", "quantity"])
    assert sorted(set(table.index.get_level_values(0))) == [1, 2, 3, 4, 5]
    updates = table.xs("update", level="quantity")["max"]
    assert (updates[3] == 0).all()
    assert (updates[2] > 0).all()
    assert (updates[4] > 0).all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, but it is 0"):
        GradientScaleCallback(every=0)
    with pytest.raises(ValueError, match="records_per_part must be"):
        GradientScaleCallback(records_per_part=0)
    # The Trainer's own options ask for DeepSpeed, or `accelerate launch` does.
    for asked in (
        {"deepspeed": {"zero_optimization": {"stage": 2}}},
        {"deepspeed": None, "deepspeed_plugin": object()},
    ):
        with pytest.raises(ValueError, match="under DeepSpeed"):
            GradientScaleCallback().on_init_end(types.SimpleNamespace(**asked), None, None)
