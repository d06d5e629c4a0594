"""`run.json`: what one fine-tuning run was, written beside the model and read by its card."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import Trainer, TrainingArguments

from hf_proxadam import atomic
from hf_proxadam.study.environment import environment
from hf_proxadam.study.optimizers import describe_optimizer

FILE_NAME = "run.json"
_SECRET = re.compile(r"^--\w*(token|secret|password|api_key)$")
# Of all of TrainingArguments, what decides the result and says nothing about the machine.
_TRAINING = (
    *("optim", "optim_args", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed", "bf16", "fp16"),
)


def write(
    trainer: Trainer,
    script_options: Mapping[str, Any],
    task: Mapping[str, Any],
    measured: Mapping[str, float],
    license: str | None = None,
    base_model: str | None = None,
) -> None:
    """Write `run.json` to the Trainer's output folder; call it on rank 0, after the training.

    Args:
        trainer: what ran; its live optimizer is described, and not what the arguments claim.
        script_options: what the script takes beside TrainingArguments, by name.
        task: what the task's `describe()` gives.
        measured: the training's metrics, for its time.
        license: of the fine-tuned model, as the Hub names it; default: that of the base model's card, where it has one.
        base_model: name on the Hub of the model that was fine-tuned, where it was read from a local folder.
    """
    name = str(task["base_model"])
    is_local = Path(name).expanduser().is_dir()
    from_scratch = bool(task["from_scratch"])
    record = {
        "command": _without_secrets([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "environment": environment(),
        "script": dict(script_options),
        "task": {key: value for key, value in task.items() if key not in ("base_model", "from_scratch")},
        "base_model": {
            "name": name,
            "from_scratch": from_scratch,
            "id": base_model or (None if is_local or from_scratch else name),
            "revision": getattr(trainer.model.config, "_commit_hash", None),
            "license": license or (None if from_scratch else _license(name, is_local)),
        },
        "training": {**_told(trainer.args), "world_size": trainer.args.world_size},
        "optimizer": describe_optimizer(trainer.optimizer),
        "timing": {
            "train_seconds": measured["train_runtime"],
            "samples_per_second": measured["train_samples_per_second"],
        },
    }
    atomic.write_json(Path(trainer.args.output_dir) / FILE_NAME, record)


def _without_secrets(command: list[str]) -> list[str]:
    """Write `***` for the value of every option such as `--hub_token`."""
    shown, hidden = [], False
    for argument in command:
        name, sign, _ = argument.partition("=")
        shown.append("***" if hidden else f"{name}=***" if sign and _SECRET.match(name) else argument)
        hidden = not sign and _SECRET.match(name) is not None
    return shown


def _told(arguments: TrainingArguments) -> dict[str, Any]:
    values = {name: getattr(arguments, name, None) for name in _TRAINING}
    return {name: getattr(value, "value", value) for name, value in values.items()}


def _license(name: str, is_local: bool) -> str | None:
    """The licence that the base model's card names, or None: a fine-tuned model must not invent one."""
    card = Path(name).expanduser() / "README.md" if is_local else name
    try:
        found = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
    except Exception:  # there is no card, no network or no access: whatever it is, no licence is known
        return None
    return found if isinstance(found, str) else None
