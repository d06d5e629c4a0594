"""Fine-tunes a text encoder on a task of GLUE with the Trainer, and records the scales of its gradients.

    accelerate launch scripts/run_glue.py --task_name mrpc --model_name_or_path bert-base-uncased \
        --optim proxadam --learning_rate 1e-4 --weight_decay 0.01 --num_train_epochs 3 \
        --per_device_train_batch_size 32 --output_dir runs/mrpc

All of `transformers.TrainingArguments` can be given. It trains and evaluates, unless `--do_train`, `--do_eval` or
`--do_predict` (which writes the benchmark's submission files, such as MRPC.tsv) ask for something else. Data comes from
the Hub, or with `--dataset_path FOLDER` from FOLDER/<task_name>/train*.parquet and so on. The output folder then holds
the model, `all_results.json`, `run.json` (command, versions, the optimizer that really ran) and the gradient scales in
`scales/*.parquet`.
"""

import dataclasses
import logging
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed

import hf_proxadam  # noqa: F401  (registers the optimizers with transformers)
from hf_proxadam import atomic
from hf_proxadam.scales import GradientScaleCallback
from hf_proxadam.study.optimizers import check_training_optimizer, describe_optimizer
from hf_proxadam.study.store import environment
from hf_proxadam.tasks.base import unscaled
from hf_proxadam.tasks.glue import GLUE, GlueTask

logger = logging.getLogger("run_glue")


@dataclasses.dataclass(kw_only=True)
class GlueArguments:
    """What this script takes beside TrainingArguments."""

    task_name: str = dataclasses.field(metadata={"help": "Task of GLUE.", "choices": list(GLUE)})
    model_name_or_path: str = dataclasses.field(
        metadata={"help": "Pretrained encoder: name on the Hub or local folder."}
    )
    model_revision: str = dataclasses.field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    dataset_path: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Folder that holds <task_name>/train*.parquet ...; default: the Hub's nyu-mll/glue."},
    )
    max_seq_length: int = dataclasses.field(default=128, metadata={"help": "Longer inputs are cut to so many tokens."})
    pad_to_max_length: bool = dataclasses.field(
        default=False, metadata={"help": "Pad all batches to max_seq_length, and not to their longest row."}
    )
    validation_fraction: float = dataclasses.field(
        default=0.0,
        metadata={
            "help": "Share of the training data held out for choosing hyper-parameters: it becomes the validation "
            "split, and the benchmark's validation split is reported on at the end as `test`."
        },
    )
    max_train_samples: int | None = dataclasses.field(default=None, metadata={"help": "Use so many examples only."})
    max_eval_samples: int | None = dataclasses.field(default=None, metadata={"help": "Use so many examples only."})
    max_predict_samples: int | None = dataclasses.field(default=None, metadata={"help": "Use so many examples only."})
    record_scales_every: int = dataclasses.field(
        default=10, metadata={"help": "Record the gradient scales every so many steps; 0 for never."}
    )


class Parser(HfArgumentParser):
    """A parser that says what is wrong without 400 lines of usage before it."""

    def error(self, message: str) -> NoReturn:
        """Print one sentence and exit with code 2."""
        self.exit(2, f"run_glue.py: {message}\n")


def main() -> None:
    parser = Parser((GlueArguments, TrainingArguments), description="Fine-tune on GLUE and record gradient scales.")
    try:
        glue, training = parser.parse_args_into_dataclasses()
        task, trainer = prepare(glue, training)
    except ValueError as error:
        parser.error(str(error))

    folder = Path(training.output_dir)
    if training.do_train:
        trained = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        trainer.save_model()
        trainer.save_state()
        report(trainer, "train", trained.metrics)
        if trainer.is_world_process_zero():
            atomic.write_json(folder / "run.json", describe(trainer, glue))
    if training.do_eval:
        report(trainer, "eval", trainer.evaluate())
        main = "eval"
        if task.has_test:
            main = "test"
            report(trainer, "test", trainer.evaluate(task.test, metric_key_prefix="test"))
        if task.mismatched is not None:
            split = f"{main}_mismatched"
            report(trainer, split, trainer.evaluate(task.mismatched, metric_key_prefix=split))
    if training.do_predict:
        for file, rows in task.unlabelled.items():
            predictions = trainer.predict(rows).predictions
            if trainer.is_world_process_zero():
                task.write_submission(folder / file, rows, predictions)


def prepare(glue: GlueArguments, training: TrainingArguments) -> tuple[GlueTask, Trainer]:
    """Check everything and load data and model, so that what is wrong is said before the first step."""
    if glue.record_scales_every < 0:
        raise ValueError(f"record_scales_every is {glue.record_scales_every}; it must be at least 1, or 0 for never.")
    if Path(training.output_dir).is_file():
        raise ValueError(f"output_dir is {training.output_dir!r}, which is a file; give a folder.")
    if not (training.do_train or training.do_eval or training.do_predict):
        training.do_train = training.do_eval = True
    resume, scales = training.resume_from_checkpoint, Path(training.output_dir) / "scales"
    if resume and not Path(resume).is_dir():
        raise ValueError(f"resume_from_checkpoint is {resume!r}, but there is no such folder.")
    if training.do_train and glue.record_scales_every and not resume and any(scales.glob("*.parquet")):
        raise ValueError(f"{scales} holds another run's records: resume that run, or give another --output_dir.")
    check_training_optimizer(training)
    options = dataclasses.asdict(glue)
    task = GlueTask(**{field.name: options[field.name] for field in dataclasses.fields(GlueTask)})
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO if training.process_index == 0 else logging.WARNING)
    if training.max_grad_norm > 0:
        logger.info(
            "Gradients are clipped at norm %g: updates then depend on their scale; --max_grad_norm 0 turns it off.",
            training.max_grad_norm,
        )
    # On several processes the first one tokenises, and the others read its cache.
    labelled = training.do_train or training.do_eval
    with training.main_process_first(desc="tokenising"):
        train, validation = (task.train, task.validation) if labelled else (None, None)
        if training.do_predict:
            _ = task.unlabelled
    set_seed(training.seed)
    trainer = Trainer(
        model=unscaled(task.make_model(trained=not training.do_train)),
        args=training,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=task.collate,
        compute_metrics=task.compute_metrics,
        processing_class=task.tokenizer,
    )
    if glue.record_scales_every:
        trainer.add_callback(GradientScaleCallback(every=glue.record_scales_every))
    return task, trainer


def report(trainer: Trainer, split: str, metrics: dict[str, Any]) -> None:
    """Print a split's metrics and write them to the output folder (rank 0 only)."""
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)


def describe(trainer: Trainer, glue: GlueArguments) -> dict[str, Any]:
    """Say what ran: the command, the versions, and the live optimizer in place of what the arguments claim."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "environment": environment(),
        "glue": dataclasses.asdict(glue),
        "optimizer": describe_optimizer(trainer.optimizer),
        "max_grad_norm": trainer.args.max_grad_norm,
        "seed": trainer.args.seed,
    }


if __name__ == "__main__":
    main()
