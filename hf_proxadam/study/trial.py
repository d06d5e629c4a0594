"""One cell, trained by the Trainer."""

import functools
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import patch_environment
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from hf_proxadam.scales import GradientScaleCallback
from hf_proxadam.study import store
from hf_proxadam.study.cells import Cell
from hf_proxadam.study.optimizers import describe_optimizer
from hf_proxadam.tasks import task_class
from hf_proxadam.tasks.base import Task, unscaled
from hf_proxadam.trainer.experiment import ExperimentTrainer


class StopWhenDiverged(TrainerCallback):
    """Ends the training as soon as a logged training or validation loss is not finite."""

    def __init__(self) -> None:
        self.diverged = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Look at the losses among what is logged."""
        losses = [value for key, value in (logs or {}).items() if key in ("loss", "eval_loss", "train_loss")]
        if not all(math.isfinite(loss) for loss in losses):
            self.diverged = True
            control.should_training_stop = True


def run_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train one cell and return its result (see `hf_proxadam.study.store`); only its gradient scales are written.

    Everything random is seeded from `cell.seed`, so that what ran before in this process has no influence: the result
    is the same bit for bit whenever and wherever on one machine the cell is run, its `timing` apart.

    Args:
        cell: what to train.
        folder: the study folder.

    Returns:
        The result, in JSON's types. A run whose loss was not finite has the status `diverged` and no scores.
    """
    task = _task(cell.task, json.dumps(cell.model, sort_keys=True))
    scales = store.scales_folder(folder, cell.hash)
    if os.environ.get("RANK", "0") == "0":
        shutil.rmtree(scales, ignore_errors=True)  # of an attempt that was interrupted
    stop = StopWhenDiverged()
    callbacks: list[TrainerCallback] = [stop]
    if cell.record_scales_every:
        callbacks.append(GradientScaleCallback(every=cell.record_scales_every, folder=scales))
    # Before 5, TrainingArguments left its precision in the environment, and the next one in this process took it up.
    precision = patch_environment(ACCELERATE_MIXED_PRECISION="bf16" if cell.training.bf16 else "no")
    # The Trainer makes its output folder whether or not anything is saved.
    with precision, tempfile.TemporaryDirectory(prefix="hf-proxadam-") as scratch:
        set_seed(cell.seed)
        trainer = ExperimentTrainer(
            loss_multiplier=cell.loss_multiplier,
            model=unscaled(task.make_model()),
            args=_arguments(cell, task, scratch),
            train_dataset=task.train,
            eval_dataset=task.validation,
            data_collator=task.collate,
            compute_metrics=task.compute_metrics,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        measured = trainer.train().metrics
        scores = {}
        for split in ("validation", "test") if not stop.diverged else ():
            found = trainer.evaluate(getattr(task, split), metric_key_prefix=split)
            scores[split] = {name: float(found[f"{split}_{name}"]) for name in (*task.metrics, "loss")}
    diverged = stop.diverged or not all(math.isfinite(score["loss"]) for score in scores.values())
    return {
        "hash": cell.hash,
        "cell": cell.point,
        "status": "diverged" if diverged else "finished",
        "validation": None if diverged else scores["validation"],
        "test": None if diverged else scores["test"],
        "curve": _curve(trainer.state.log_history, task.metrics),
        "optimizer": describe_optimizer(trainer.optimizer),
        "timing": {
            "train_seconds": measured["train_runtime"],
            "samples_per_second": measured["train_samples_per_second"],
        },
    }


def _arguments(cell: Cell, task: Task, scratch: str) -> TrainingArguments:
    training = cell.training
    steps = training.max_steps
    if steps < 0:
        batches = math.ceil(len(task.train) / (training.per_device_train_batch_size * training.processes_per_cell))
        steps = math.ceil(math.ceil(batches / training.gradient_accumulation_steps) * training.num_train_epochs)
    return TrainingArguments(
        output_dir=scratch,
        optim=cell.optim,
        optim_args=cell.optim_args,
        learning_rate=cell.learning_rate,
        weight_decay=cell.weight_decay,
        seed=cell.seed,
        max_grad_norm=0.0,
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=_count(training.warmup_steps, steps),
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        logging_strategy="steps",
        logging_steps=max(1, _count(training.logging_steps, steps)),
        # A loss that is not finite must be seen; by default the Trainer logs the last finite one in its place.
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=max(1, _count(training.eval_steps, steps)),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        bf16=training.bf16,
        # Not left to the Trainer, which has to be told for mixed precision where there is nothing else.
        use_cpu=training.use_cpu or not torch.accelerator.is_available(),
    )


def _count(number: float, steps: int) -> int:
    """A number of steps, or, below 1, a share of all `steps`."""
    return round(number * steps) if number < 1 else int(number)


def _curve(history: list[dict[str, float]], metrics: tuple[str, ...]) -> list[dict[str, float | int | None]]:
    """The Trainer's log as one point per step; numbers that are not finite become None, which JSON can hold."""
    names = {"loss": "train_loss", "learning_rate": "learning_rate"}
    # The last evaluation is ours and goes by the prefix `validation`, those on the way by the Trainer's `eval`.
    for prefix in ("eval", "validation"):
        names |= {f"{prefix}_{name}": f"validation_{name}" for name in ("loss", *metrics)}
    points: dict[int, dict[str, float | int | None]] = {}
    for entry in history:
        found = {name: entry[key] for key, name in names.items() if key in entry}
        if found:
            step = int(entry["step"])
            point = points.setdefault(step, {"step": step, "epoch": float(entry["epoch"])})
            point |= {name: float(value) if math.isfinite(value) else None for name, value in found.items()}
    return [points[step] for step in sorted(points)]


@functools.lru_cache(maxsize=1)
def _task(name: str, options: str) -> Task:
    """Keep the last task: in a worker, reading and tokenising are paid for once and not once per cell."""
    task: Task = task_class(name)(**json.loads(options))
    return task
