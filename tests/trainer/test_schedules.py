"""Learning-rate schedules: what is logged is the scheduler's, and the optimizer steps with it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.trainer.small import Regression, arguments, trainer

SCHEDULES = {
    "linear, warmed up": {"lr_scheduler_type": "linear", "warmup_steps": 3},
    "cosine with restarts": {
        "lr_scheduler_type": "cosine_with_restarts",
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "warmup_steps": 2,
    },
    "constant, warmed up": {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4},
    "reduce on plateau": {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "threshold": 0.99, "factor": 0.5},
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "loss",
    },
}


class Used(TrainerCallback):
    """Notes what every step was taken with."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.moved: list[bool] = []
        self._before: torch.Tensor | None = None

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._before = kwargs["model"].linear.weight.detach().clone()
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        assert self._before is not None
        self.moved.append(not torch.equal(self._before, kwargs["model"].linear.weight))


@pytest.mark.parametrize("name", ["proxadam", "adamw_scale_free", "adam_l2"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_logged_rate_is_the_schedulers(schedule: str, name: str, tmp_path: Path) -> None:
    """Step for step as with torch's AdamW, but for the plateaus, which depend on the losses."""
    options = {"learning_rate": 0.05, "max_steps": 8, "logging_steps": 1, "save_strategy": "no", "max_grad_norm": 0}
    rates = {}
    for optim in (name, "adamw_torch"):
        used = trainer(arguments(tmp_path, optim=optim, **options, **SCHEDULES[schedule]))
        note = Used()
        used.add_callback(note)
        used.train()
        logged = [entry["learning_rate"] for entry in used.state.log_history if "learning_rate" in entry]
        rates[optim] = (note.rates, logged)
        assert note.moved == [rate > 0 for rate in note.rates]
        # Transformers 5 logs the rate that a step was taken with, and 4 the rate of the next one.
        assert logged == note.rates or logged[:-1] == note.rates[1:]
    if schedule == "reduce on plateau":
        assert rates[name][1][0] == 0.05 > rates[name][1][-1]
    else:
        assert rates[name] == rates["adamw_torch"]
        assert rates[name][0][0] == 0, "a warm-up starts from 0"


@pytest.mark.parametrize("name", ["proxadam", "adamw_scale_free"])
def test_relative_decay_keeps_its_initial_rate_through_a_resume(name: str, tmp_path: Path) -> None:
    options = {
        "optim": name,
        "optim_args": "decay_schedule=relative",
        "learning_rate": 0.05,
        "weight_decay": 0.1,
        "max_steps": 8,
        "save_steps": 4,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 0,
    }
    whole = trainer(arguments(tmp_path / "whole", **options))
    whole.train()
    resumed = trainer(arguments(tmp_path / "resumed", **options))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert [group["initial_lr"] for group in resumed.optimizer.param_groups] == [0.05, 0.05]
    saved = torch.load(tmp_path / "whole" / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert [group["initial_lr"] for group in saved["param_groups"]] == [0.05, 0.05]
    assert saved["param_groups"][0]["lr"] < 0.05
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert isinstance(whole.model, Regression)
