"""optim_target_modules: the selected modules get the proximal map, the rest plain l2, and groups stay the Trainer's."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments

from hf_proxadam import AdamL2, ProxAdam, get_optimizer
from hf_proxadam.study.optimizers import check_training_optimizer
from hf_proxadam.trainer import groups
from tests.trainer.small import Layers, arguments, trainer


def l1(tmp_path: Path, **options: Any) -> TrainingArguments:
    given = {
        "optim": "proxadam",
        "optim_args": "proximal=l1",
        "weight_decay": 0.5,
        "learning_rate": 0.1,
        "max_steps": 2,
    }
    return arguments(tmp_path, **{**given, **options})


def names_by_map(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[tuple[str, float], set[str]]:
    names = {id(param): name for name, param in model.named_parameters()}
    return {(g["proximal"], g["weight_decay"]): {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}


UNDECAYED = {"first.bias", "norm.weight", "norm.bias", "last.bias"}


@pytest.mark.parametrize("modules", [["first"], "first", "fir.*", ["fi[r]st"]])
def test_the_trainer_gives_the_map_to_the_selected_modules(modules: str | list[str], tmp_path: Path) -> None:
    used = trainer(l1(tmp_path, optim_target_modules=modules), Layers)
    used.train()
    assert type(used.optimizer.optimizer) is ProxAdam
    assert names_by_map(used.model, used.optimizer.optimizer) == {
        ("l1", 0.5): {"first.weight"},
        ("l2", 0.5): {"last.weight"},
        ("l1", 0.0): UNDECAYED,
    }


def test_all_linear_selects_linear_layers_only(tmp_path: Path) -> None:
    model = Layers()
    assert {id(p) for p in groups.select(model, "all-linear")} == {
        id(p) for layer in (model.first, model.last) for p in layer.parameters()
    }
    used = trainer(l1(tmp_path, optim_target_modules="all-linear"), Layers)
    assert names_by_map(used.model, used.create_optimizer())["l1", 0.5] == {"first.weight", "last.weight"}


def test_the_selected_shrink_to_zero_and_the_rest_decays(tmp_path: Path) -> None:
    # s = lr decay = 1 at the first step: l1 takes all of a weight below 1, l2 halves it.
    args = l1(tmp_path, learning_rate=1e-3, weight_decay=1000, optim_target_modules=["first"], max_steps=1)
    used = trainer(args, Layers)
    before = used.model.last.weight.detach().clone()
    used.train()
    assert torch.count_nonzero(used.model.first.weight) == 0
    assert torch.allclose(used.model.last.weight, before / 2, atol=1e-3)


def test_a_trainers_own_rule_for_decay_is_kept(tmp_path: Path) -> None:
    class OnlyLast(Trainer):
        def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
            return ["last.weight", "last.bias"]

    used = trainer(l1(tmp_path, optim_target_modules="last"), Layers, OnlyLast)
    assert names_by_map(used.model, used.create_optimizer())["l1", 0.5] == {"last.weight", "last.bias"}


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    options = {"optim_target_modules": ["first"], "max_steps": 4, "save_steps": 2, "learning_rate": 0.01}
    whole = trainer(l1(tmp_path / "whole", **options), Layers)
    whole.train()
    resumed = trainer(l1(tmp_path / "resumed", **options), Layers)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_command_line_gives_modules(tmp_path: Path) -> None:
    words = ["--output_dir", str(tmp_path), "--optim", "proxadam", "--optim_args", "proximal=l1", "--use_cpu"]
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        [*words, "--weight_decay", "0.5", "--optim_target_modules", "all-linear", "--report_to", "none"]
    )
    used = trainer(args, Layers)
    assert names_by_map(used.model, used.create_optimizer())["l1", 0.5] == {"first.weight", "last.weight"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optim": "adam_l2", "optim_args": None}, "'adam_l2' has none: leave it out, or choose proxadam"),
        ({"optim_args": None}, "has no effect on 'proxadam' with proximal='l2', which all modules get"),
        ({"optim_target_modules": ["third"]}, "['third'] selects no module with trainable parameters"),
        ({"optim_target_modules": "las"}, "and the modules are first, norm, last"),
        ({"optim_target_modules": [3]}, "must be 'all-linear', a regular expression, or a list of strings"),
    ],
)
def test_what_has_no_effect_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    used = trainer(l1(tmp_path, **{"optim_target_modules": ["first"], **changes}), Layers)
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        used.train()
    assert "\n" not in str(error.value)


def test_the_check_before_a_run_needs_no_model(tmp_path: Path) -> None:
    check_training_optimizer(l1(tmp_path, optim_target_modules=["of a model that is not there yet"]))
    with pytest.raises(ValueError, match="'adam_l2' has none"):
        check_training_optimizer(l1(tmp_path, optim="adam_l2", optim_args=None, optim_target_modules=["first"]))


def test_without_the_model_nothing_is_selected_silently(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the model"):
        Trainer.get_optimizer_cls_and_kwargs(l1(tmp_path, optim_target_modules=["first"]))


def test_frozen_modules_are_not_selected() -> None:
    model = Layers()
    model.first.requires_grad_(False)
    with pytest.raises(ValueError, match="selects no module with trainable parameters"):
        groups.select(model, ["first"])


@pytest.mark.parametrize("name", ["proxadam", "adam_l2"])
def test_decay_groups_are_the_trainers(name: str, tmp_path: Path) -> None:
    used = trainer(arguments(tmp_path, optim=name, weight_decay=0.25), Layers)
    theirs, ours = used.create_optimizer(), get_optimizer(name, used.model, weight_decay=0.25)
    assert type(ours) is type(theirs)
    for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert mine["weight_decay"] == other["weight_decay"]
        assert [id(p) for p in mine["params"]] == [id(p) for p in other["params"]]
    assert len(ours.param_groups[0]["params"]) == 2
    assert isinstance(ours, ProxAdam if name == "proxadam" else AdamL2)
