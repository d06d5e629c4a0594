"""The names in transformers: TrainingArguments, the command line, pickles, and a Trainer that really uses them."""

import copy
import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

import hf_proxadam
from hf_proxadam.trainer.catalog import CATALOG

every_name = pytest.mark.parametrize("name", CATALOG)


def arguments(tmp_path: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, **options)


class Regression(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.linear(x).squeeze(-1) - labels).square().mean()}


def trainer(args: TrainingArguments) -> Trainer:
    torch.manual_seed(0)
    rows = [{"x": torch.randn(3), "labels": torch.randn(())} for _ in range(16)]
    return Trainer(Regression(), args, train_dataset=rows)


@every_name
def test_is_a_member_everywhere(name: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, optim=name)
    assert args.optim is OptimizerNames(name)
    assert args.optim in list(OptimizerNames)
    assert args.optim == name
    assert json.loads(args.to_json_string())["optim"] == name
    assert dataclasses.replace(args, learning_rate=1.0).optim is args.optim
    assert copy.deepcopy(args).optim is args.optim
    assert args.set_optimizer(name=name, learning_rate=0.1).optim is args.optim
    parser = HfArgumentParser(TrainingArguments)
    (parsed,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--optim", name, "--use_cpu"])
    assert parsed.optim is args.optim
    assert parser.parse_dict({"output_dir": str(tmp_path), "optim": name})[0].optim is args.optim


@every_name
def test_the_trainer_uses_it(name: str, tmp_path: Path) -> None:
    entry = CATALOG[name]
    used = trainer(arguments(tmp_path, optim=name, max_steps=3, learning_rate=0.1, weight_decay=0.25, adam_beta2=0.95))
    used.train()
    optimizer = used.optimizer.optimizer
    assert type(optimizer) is entry.cls
    assert optimizer.defaults["eps"] == entry.defaults.get("eps", 1e-8)
    assert optimizer.defaults.get("direction") == entry.defaults.get("direction", optimizer.defaults.get("direction"))
    assert optimizer.defaults["betas"] == (0.9, 0.95)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.25, 0.0]  # none on the bias
    assert [g["initial_lr"] for g in optimizer.param_groups] == [0.1, 0.1]


def test_options_reach_the_optimizer(tmp_path: Path) -> None:
    used = trainer(arguments(tmp_path, optim="proxadam", optim_args="eps=0, proximal=l1,foreach=False", max_steps=1))
    used.train()
    defaults = used.optimizer.optimizer.defaults
    assert (defaults["eps"], defaults["proximal"], defaults["foreach"]) == (0.0, "l1", False)


def test_a_wrong_option_is_told_before_training(tmp_path: Path) -> None:
    used = trainer(arguments(tmp_path, optim="proxadam", optim_args="epsilon=0"))
    before = copy.deepcopy(used.model.state_dict())
    with pytest.raises(ValueError, match="optim_args has no 'epsilon' for 'proxadam'; it knows amsgrad"):
        used.train()
    assert all(torch.equal(v, before[k]) for k, v in used.model.state_dict().items())


def test_an_option_without_effect_is_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path, optim="adam_l2", optim_target_modules="all-linear")
    with pytest.raises(ValueError, match="optim_target_modules='all-linear' has no effect on 'adam_l2'"):
        Trainer.get_optimizer_cls_and_kwargs(args)


def test_unknown_names_are_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"proxadamm is not a valid OptimizerNames.*'proxadam'"):
        arguments(tmp_path, optim="proxadamm")


def test_entering_twice_is_harmless() -> None:
    before = list(OptimizerNames)
    hf_proxadam.register()
    assert list(OptimizerNames) == before


def test_a_name_that_transformers_owns_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_proxadam.trainer import registration

    monkeypatch.setitem(registration.CATALOG, "sgd", dataclasses.replace(CATALOG["proxadam"], name="sgd"))
    with pytest.warns(UserWarning, match="'sgd' of its own"):
        registration.register()
    assert Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(output_dir="x", optim="sgd"))[0] is torch.optim.SGD


@every_name
def test_pickles_load_where_the_package_is_missing(name: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, optim=name)
    torch.save(args, tmp_path / "training_args.bin")
    assert pickle.loads(pickle.dumps(args)).optim == name
    code = (
        "import sys, torch; sys.modules['hf_proxadam'] = None\n"
        f"print(torch.load({str(tmp_path / 'training_args.bin')!r}, weights_only=False).optim)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == name, done.stderr


def test_a_loaded_pickle_trains(tmp_path: Path) -> None:
    args = pickle.loads(pickle.dumps(arguments(tmp_path, optim="adamw_scale_free", max_steps=1)))
    used = trainer(args)
    used.train()
    assert type(used.optimizer.optimizer) is hf_proxadam.ScaleFreeAdamW


@every_name
def test_a_resumed_training_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    options = {
        "optim": name,
        "learning_rate": 0.05,
        "weight_decay": 0.1,
        "max_steps": 8,
        "save_steps": 4,
        "warmup_steps": 3,
    }
    whole = trainer(arguments(tmp_path / "whole", **options))
    whole.train()
    resumed = trainer(arguments(tmp_path / "resumed", **options))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_way_of_older_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 5.2 there is no table of handlers: the static method is wrapped instead, once."""
    from hf_proxadam.trainer import registration

    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(lambda args, model=None: ("theirs", {})))
    registration._wrap_lookup(CATALOG)
    wrapped = Trainer.get_optimizer_cls_and_kwargs
    registration._wrap_lookup(CATALOG)
    assert Trainer.get_optimizer_cls_and_kwargs is wrapped
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments(tmp_path, optim="adamw_atan2", learning_rate=0.5))
    assert cls is hf_proxadam.ScaleFreeAdamW
    assert (kwargs["lr"], kwargs["direction"]) == (0.5, "atan2")
    assert Trainer.get_optimizer_cls_and_kwargs(arguments(tmp_path, optim="sgd"))[0] == "theirs"
