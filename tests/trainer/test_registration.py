"""The names in transformers: TrainingArguments, the command line, pickles, and a Trainer that really uses them."""

import copy
import dataclasses
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

import hf_proxadam
from hf_proxadam.trainer.catalog import CATALOG
from tests.trainer.small import arguments, trainer

every_name = pytest.mark.parametrize("name", CATALOG)


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


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("eps", "optim_args for 'proxadam' must be key=value pairs joined by commas, got 'eps'"),
        ("amsgrad=maybe", "amsgrad='maybe' for 'proxadam' is not True or False"),
    ],
)
def test_the_sentence_is_ours_and_not_of_transformers_own_parser(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        trainer(arguments(tmp_path, optim="proxadam", optim_args=text)).train()


@every_name
@pytest.mark.parametrize("way", ["command line", "JSON", "YAML"])
def test_names_and_options_can_be_read_from(way: str, name: str, tmp_path: Path) -> None:
    given = {"output_dir": str(tmp_path), "optim": name, "optim_args": "seed=3,amsgrad=true", "use_cpu": True}
    parser = HfArgumentParser(Seq2SeqTrainingArguments)
    file = tmp_path / "arguments"
    file.write_text(json.dumps(given))  # which is YAML, too
    if way == "command line":
        words = ["--output_dir", str(tmp_path), "--optim", name, "--optim_args", given["optim_args"], "--use_cpu"]
        (args,) = parser.parse_args_into_dataclasses(words)
    else:
        (args,) = parser.parse_json_file(str(file)) if way == "JSON" else parser.parse_yaml_file(str(file))
    assert args.optim is OptimizerNames(name)
    cls, options = Trainer.get_optimizer_cls_and_kwargs(args)
    assert cls is CATALOG[name].cls
    assert (options["seed"], options["amsgrad"]) == (3, True)


def test_the_command_line_lists_the_names() -> None:
    text = " ".join(HfArgumentParser(TrainingArguments).format_help().split())
    assert all(name in text for name in CATALOG)


def test_a_subclass_of_the_trainer_with_a_lookup_of_its_own(tmp_path: Path) -> None:
    class Slower(Trainer):
        @staticmethod
        def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: Any = None) -> tuple[Any, dict[str, Any]]:
            cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
            return cls, {**options, "lr": args.learning_rate / 2}

    used = trainer(arguments(tmp_path, optim="adam_l2", learning_rate=0.5, max_steps=1), cls=Slower)
    assert type(used.create_optimizer()) is hf_proxadam.AdamL2
    assert used.optimizer.defaults["lr"] == 0.25


def test_unknown_names_are_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"proxadamm is not a valid OptimizerNames.*'proxadam'"):
        arguments(tmp_path, optim="proxadamm")


def test_entering_twice_is_harmless() -> None:
    before, lookup = list(OptimizerNames), Trainer.get_optimizer_cls_and_kwargs
    hf_proxadam.register()
    assert list(OptimizerNames) == before
    assert Trainer.get_optimizer_cls_and_kwargs is lookup


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


@every_name
def test_a_checkpoint_of_torchs_fused_adamw_goes_on_under_another_name(name: str, tmp_path: Path) -> None:
    """It is what transformers 5 writes unless told otherwise."""
    options = {"learning_rate": 0.05, "max_steps": 4, "save_steps": 2}
    trainer(arguments(tmp_path, optim="adamw_torch_fused", **options)).train()
    resumed = trainer(arguments(tmp_path / "resumed", optim=name, **options))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    told = [str(w.message) for w in caught if "of the loaded state dict" in str(w.message)]
    assert [text.partition("dict, ")[2].partition(". To go")[0] for text in told] == {
        "adamw_atan2": ["eps=1e-08 is left out, for which direction='atan2' has no use"],
        "adamw_scale_free": ["eps=1e-08 replaces eps=0.0"],
        "proxadam_scale_free": ["eps=1e-08 replaces eps=0.0"],
    }.get(name, [])
    assert {float(state["step"]) for state in resumed.optimizer.optimizer.state.values()} == {4.0}
