"""Throughput of fine-tuning on GLUE as `run_glue.py` does it, beside a plain Trainer script, in one run.

    python scripts/benchmarks/glue.py --task_name mrpc --model_name_or_path MODEL --dataset_path FOLDER

The plain script pads every batch to 128 tokens, trains with `adamw_torch` and records nothing. Ours pads to the longest
row of a batch, trains with `proxadam` and records the gradient scales every 10 steps. They take turns, `--rounds` times
`--steps` steps each, on the same examples; medians are printed. "outside" is the share of the time that was spent
neither in the forward nor in the backward pass: data, optimizer, recorder, Trainer.
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Trainer, TrainingArguments

import hf_proxadam  # noqa: F401  (registers the optimizers with transformers)
from hf_proxadam.scales import GradientScaleCallback
from hf_proxadam.tasks.base import unscaled
from hf_proxadam.tasks.glue import GlueTask


class TimedTrainer(Trainer):
    """A Trainer that sums up the time of its forward and backward passes."""

    passes = 0.0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Time one forward and backward pass."""
        begin = time.perf_counter()
        try:
            return super().training_step(*args, **kwargs)
        finally:
            self.passes += time.perf_counter() - begin


def train(task: GlueTask, optim: str, steps: int, batch_size: int, every: int) -> tuple[float, float]:
    """Samples per second of a short training, and the share of the time outside the passes."""
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            optim=optim,
            learning_rate=1e-5,
            weight_decay=0.01,
            max_grad_norm=0.0,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_steps=10**9,
        )
        callbacks = [GradientScaleCallback(every=every)] if every else []
        trainer = TimedTrainer(
            unscaled(task.make_model()), args, train_dataset=task.train, data_collator=task.collate, callbacks=callbacks
        )
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
    return steps * batch_size / seconds, 1 - trainer.passes / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task_name", default="mrpc")
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset_path", type=Path)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    common = {
        "task_name": args.task_name,
        "model_name_or_path": args.model_name_or_path,
        "dataset_path": None if args.dataset_path is None else str(args.dataset_path),
        "validation_fraction": 0.0,
    }
    settings = {
        "plain Trainer, padded to 128": (GlueTask(**common, pad_to_max_length=True), "adamw_torch", 0),
        "run_glue.py, proxadam": (GlueTask(**common), "proxadam", 10),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in settings}
    for _ in range(args.rounds):
        for name, (task, optim, every) in settings.items():
            found[name].append(train(task, optim, args.steps, args.batch_size, every))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    plain = medians["plain Trainer, padded to 128"][0]
    print(
        f"{args.task_name}, batch {args.batch_size}, {args.rounds} x {args.steps} steps; torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n"
    )
    print("| script | samples/s | of plain | outside (%) |\n| --- | ---: | ---: | ---: |")
    for name, (speed, outside) in medians.items():
        print(f"| {name} | {speed:.1f} | {speed / plain:.2f} | {100 * outside:.1f} |")


if __name__ == "__main__":
    main()
