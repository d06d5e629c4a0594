"""What would silently not be what was asked for is said, once a training, on the first process."""

import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_proxadam import get_optimizer
from hf_proxadam.study.optimizers import check_training_optimizer
from hf_proxadam.tasks.base import unscaled
from hf_proxadam.trainer import pitfalls
from tests.trainer.small import Layers, arguments, trainer

SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}


def said(args: TrainingArguments, model: Any = None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Trainer.get_optimizer_cls_and_kwargs(args, model)
    assert all(issubclass(warning.category, UserWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", ["proxadam", "adam_l2"])
def test_nothing_is_said_where_all_is_as_asked(name: str, tmp_path: Path) -> None:
    assert said(arguments(tmp_path, optim=name, adam_epsilon=1e-6), Layers()) == []
    assert said(arguments(tmp_path, optim="adamw_scale_free", max_grad_norm=0), Layers()) == []


@pytest.mark.parametrize("name", ["proxadam_scale_free", "adamw_scale_free"])
def test_scale_free_names_ignore_adam_epsilon_unless_told_so(name: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, optim=name, adam_epsilon=1e-6, max_grad_norm=0)
    sentence = f"adam_epsilon=1e-06 is ignored: {name!r} is scale-free, with eps=0; optim_args="
    with pytest.warns(UserWarning, match=sentence) as warned:
        assert Trainer.get_optimizer_cls_and_kwargs(args)[1]["eps"] == 0
    assert len(warned) == 1
    args.optim_args = "eps=1e-5"
    assert said(args) == []
    assert Trainer.get_optimizer_cls_and_kwargs(args)[1]["eps"] == 1e-5


def test_eps_in_optim_args_overrides_adam_epsilon(tmp_path: Path) -> None:
    args = arguments(tmp_path, optim="proxadam", adam_epsilon=1e-6)
    assert Trainer.get_optimizer_cls_and_kwargs(args)[1]["eps"] == 1e-6
    args.optim_args = "eps=1e-5"
    assert Trainer.get_optimizer_cls_and_kwargs(args)[1]["eps"] == 1e-5


@pytest.mark.parametrize(("name", "optim_args"), [("adamw_atan2", None), ("proxadam", "eps=0")])
def test_clipping_ties_scale_free_updates_to_all_scales(name: str, optim_args: str | None, tmp_path: Path) -> None:
    (sentence,) = said(arguments(tmp_path, optim=name, optim_args=optim_args))
    assert sentence.startswith("max_grad_norm=1.0 clips all gradients by their common norm")
    assert sentence.endswith("set max_grad_norm=0")


def test_a_map_without_strength_has_no_effect(tmp_path: Path) -> None:
    (sentence,) = said(arguments(tmp_path, optim="proxadam", optim_args="proximal=l1"))
    assert sentence == "proximal='l1' has no effect: weight_decay is its strength, and it is 0"


def test_a_training_says_it_once_and_a_check_before_it_does_not(tmp_path: Path) -> None:
    args = arguments(tmp_path, optim="adamw_scale_free", max_steps=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_training_optimizer(args)
        assert not caught
        trainer(args).train()
    assert len([w for w in caught if "max_grad_norm" in str(w.message)]) == 1


def test_other_processes_are_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "process_index", 1)
    assert said(arguments(tmp_path, optim="adamw_scale_free")) == []


def test_fsdp_that_accelerate_ignores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = trainer(arguments(tmp_path, optim="proxadam"))  # makes accelerate's state, as it is without FSDP
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    (sentence,) = said(used.args)
    assert sentence.startswith("FSDP was asked for, but accelerate ignores it on device 'cpu' with 1 process(es)")
    for state in (AcceleratorState, PartialState):
        monkeypatch.setitem(state._shared_state, "distributed_type", DistributedType.FSDP)
    assert said(used.args) == []


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, True),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}, "zero_force_ds_cpu_optimizer": False}, False),
        ({"zero_optimization": {"offload_optimizer": {"device": "none"}}}, False),
        ({"zero_optimization": {"stage": 2}}, False),
        ({}, False),
    ],
)
def test_deepspeed_that_replaces_the_optimizer(
    config: dict[str, Any], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = trainer(arguments(tmp_path, optim="proxadam"))
    plugin = types.SimpleNamespace(deepspeed_config=config)
    monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", property(lambda _: plugin))
    if not refused:
        assert said(used.args) == []
        get_optimizer("proxadam", Layers())
        return
    sentence = "accelerate would put DeepSpeedCPUAdam in the place of 'proxadam': set \"zero_force_ds_cpu_optimizer\""
    with pytest.raises(ValueError, match=sentence):
        used.create_optimizer()
    with pytest.raises(ValueError, match=sentence):
        get_optimizer("proxadam", Layers())


def test_asking_does_not_create_accelerates_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    pitfalls.refuse_replacement("proxadam")
    assert AcceleratorState._shared_state == {}


def bert() -> Any:
    return BertForSequenceClassification(BertConfig(vocab_size=20, **SMALL))


def vit() -> Any:
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SMALL))


def llama(cls: Any) -> Any:
    options = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return cls(LlamaConfig(vocab_size=20, pad_token_id=0, **options))


MODELS = {
    "bert": bert,
    "bert, cured": lambda: unscaled(bert()),
    "vit": vit,
    "llama": lambda: llama(LlamaForCausalLM),
    "llama for sequences": lambda: llama(LlamaForSequenceClassification),
}


def gradient_norm(make: Any, accumulation: int, folder: Path) -> float:
    torch.manual_seed(0)
    model = make()
    inputs: dict[str, Any] = {"input_ids": torch.arange(3, 8)}
    if "vit" in type(model).__name__.lower():
        inputs = {"pixel_values": torch.randn(3, 8, 8)}
    labels = torch.arange(3, 8) if "CausalLM" in type(model).__name__ else torch.tensor(1)
    norms: list[float] = []

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            norms.append(sum(float(p.grad.norm()) for p in model.parameters() if p.grad is not None))

    options = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    args = arguments(folder, max_steps=1, max_grad_norm=0, save_strategy="no", **options)
    Trainer(model, args, train_dataset=[{**inputs, "labels": labels}] * 4, callbacks=[Note()]).train()
    return norms[0]


@pytest.mark.parametrize("name", MODELS)
def test_models_whose_gradients_are_multiplied_are_known(name: str, tmp_path: Path) -> None:
    """Measured with the installed transformers, whichever models that concerns there."""
    multiplied = gradient_norm(MODELS[name], 4, tmp_path) / gradient_norm(MODELS[name], 1, tmp_path)
    assert multiplied == pytest.approx(4, rel=1e-3) or multiplied == pytest.approx(1, rel=1e-3)
    sentences = said(arguments(tmp_path, optim="proxadam", gradient_accumulation_steps=4), MODELS[name]())
    assert len(sentences) == (multiplied > 2)
    assert said(arguments(tmp_path, optim="proxadam"), MODELS[name]()) == []
    if sentences:
        assert "come out multiplied by 4 (gradient_accumulation_steps x processes" in sentences[0]
        assert "set model.accepts_loss_kwargs = False before you make the Trainer" in sentences[0]
    if "cured" in name:
        assert not sentences


class OwnLoss(torch.nn.Module):
    def forward(self, x: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {"loss": torch.nn.functional.cross_entropy(x, labels)}


class HandedOn(OwnLoss):
    def forward(self, x: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.loss_function(x, labels, num_items_in_batch=kwargs.get("num_items_in_batch"))}


class NoKeywords(OwnLoss):
    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": torch.nn.functional.cross_entropy(x, labels)}


class Wrapper(torch.nn.Module):
    def get_base_model(self) -> torch.nn.Module:
        return OwnLoss()


@pytest.mark.parametrize(
    ("model", "expected"), [(OwnLoss, True), (HandedOn, False), (NoKeywords, False), (Wrapper, True)]
)
def test_what_forward_does_with_its_keywords_is_read(model: type[torch.nn.Module], expected: bool) -> None:
    assert pitfalls.divides_loss_itself(model()) is expected


def test_a_model_without_source_is_taken_for_right() -> None:
    namespace: dict[str, Any] = {"torch": torch}
    exec("class Model(torch.nn.Module):\n    def forward(self, **kwargs): return cross_entropy(kwargs)", namespace)
    namespace["Model"].__module__ = "nowhere"
    sys.modules.pop("nowhere", None)
    assert pitfalls.divides_loss_itself(namespace["Model"]()) is False
