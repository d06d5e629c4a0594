"""PEFT's LoRA and TRL's SFTTrainer on a tiny random model; skipped where they are not installed (extras: peft, trl)."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Trainer

from hf_proxadam.trainer.catalog import CATALOG

from .ways_worker import VOCABULARY, arguments, rows, tiny_llama


def needs(library: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"{library} is not installed (extra: {library})")


every_name = pytest.mark.parametrize("name", CATALOG)
STEPS = 6


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@needs("peft")
@every_name
def test_lora_trains_the_adapters_alone(name: str, tmp_path: Path) -> None:
    from peft import get_peft_model

    def trainer(folder: Path) -> Trainer:
        args = arguments("single", name, folder, max_steps=STEPS, save_steps=STEPS // 2)
        return Trainer(get_peft_model(tiny_llama(), lora()), args, train_dataset=rows())

    used = trainer(tmp_path)
    before = {key: p.detach().clone() for key, p in used.model.named_parameters()}
    used.train()
    optimizer = used.optimizer.optimizer
    assert type(optimizer) is CATALOG[name].cls
    adapters = {key: p for key, p in used.model.named_parameters() if "lora_" in key}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in adapters.values()}
    for key, p in used.model.named_parameters():
        assert torch.equal(p, before[key]) == (key not in adapters), key

    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    for (key, p), q in zip(used.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), key


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=16
    )


@needs("trl")
@pytest.mark.parametrize("with_lora", [False, pytest.param(True, marks=needs("peft"))], ids=["full", "lora"])
@every_name
def test_sft_trainer(name: str, with_lora: bool, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import HfArgumentParser
    from trl import SFTConfig, SFTTrainer

    texts = [{"text": " ".join(f"w{3 + (3 * row + i) % 29}" for i in range(12))} for row in range(16)]

    def trainer(folder: Path) -> SFTTrainer:
        given = {
            "output_dir": str(folder),
            "optim": name,
            "learning_rate": 1e-2,
            "max_steps": STEPS,
            "save_steps": STEPS // 2,
            "max_length": 16,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
        }
        (config,) = HfArgumentParser(SFTConfig).parse_dict(given)
        assert json.loads(config.to_json_string())["optim"] == name
        return SFTTrainer(
            tiny_llama(),
            args=config,
            train_dataset=Dataset.from_list(texts),
            processing_class=tiny_tokenizer(),
            peft_config=lora() if with_lora else None,
        )

    used = trainer(tmp_path)
    used.train()
    assert type(used.optimizer.optimizer) is CATALOG[name].cls
    losses = [entry["loss"] for entry in used.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    for (key, p), q in zip(used.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), key
