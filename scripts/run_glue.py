"""Fine-tunes a text encoder on a task of GLUE with the Trainer, and records the scales of its gradients.

    accelerate launch scripts/run_glue.py --task_name mrpc --model_name_or_path bert-base-uncased \
        --optim proxadam --learning_rate 1e-4 --weight_decay 0.01 --num_train_epochs 3 \
        --per_device_train_batch_size 32 --output_dir runs/mrpc

All of `transformers.TrainingArguments` can be given. It trains and evaluates, unless `--do_train`, `--do_eval` or
`--do_predict` (which writes the benchmark's submission files, such as MRPC.tsv) ask for something else. Data comes from
the Hub, or with `--dataset_path FOLDER` from FOLDER/<task_name>/train*.parquet and so on. The output folder then holds
the model, `all_results.json`, `run.json` (command, versions, the optimizer that really ran), the gradient scales in
`scales/*.parquet` and the model card, `README.md`. With `--push_to_hub` (`--hub_model_id ORG/NAME`,
`--hub_private_repo`) it is published at the end.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed

import hf_proxadam  # noqa: F401  (registers the optimizers with transformers)
from hf_proxadam.report import make as make_card
from hf_proxadam.report.persistence import HubError
from hf_proxadam.report.pushing import Destination, take_over
from hf_proxadam.scales import GradientScaleCallback
from hf_proxadam.study import run_record
from hf_proxadam.study.optimizers import check_training_optimizer
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
    license: str | None = dataclasses.field(
        default=None, metadata={"help": "The model's licence, for its card; default: that of the base model's card."}
    )
    base_model: str | None = dataclasses.field(
        default=None, metadata={"help": "The base model's name on the Hub, for the card of one read from a folder."}
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
        task, trainer, destination = prepare(glue, training)
    except (ValueError, HubError) as error:
        parser.error(str(error))

    folder = Path(training.output_dir)
    if training.do_train:
        trained = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        trainer.save_model()
        trainer.save_state()
        report(trainer, "train", trained.metrics)
        if trainer.is_world_process_zero():
            run_record.write(trainer, dataclasses.asdict(glue), task.describe(), glue.license, glue.base_model)
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
    if trainer.is_world_process_zero() and (folder / run_record.FILE_NAME).is_file():
        logger.info("The card: %s", make_card(folder))
        try:
            if destination is not None:
                logger.info(destination.publish(folder))
        except HubError as error:
            parser.exit(1, f"run_glue.py: {error}\n")


def prepare(glue: GlueArguments, training: TrainingArguments) -> tuple[GlueTask, Trainer, Destination | None]:
    """Check everything and load data and model, so that what is wrong is said before the first step."""
    if glue.record_scales_every < 0:
        raise ValueError(f"record_scales_every is {glue.record_scales_every}; it must be at least 1, or 0 for never.")
    if Path(training.output_dir).is_file():
        raise ValueError(f"output_dir is {training.output_dir!r}, which is a file; give a folder.")
    # Given an --eval_strategy, TrainingArguments turns do_eval on: that asks for evaluations of a training, too.
    asked = training.do_train or training.do_predict or (training.do_eval and training.eval_strategy == "no")
    if not asked:
        training.do_train = training.do_eval = True
    if training.push_to_hub and not training.do_train:
        raise ValueError("--push_to_hub publishes what was trained: give --do_train, or use `hf-proxadam publish`.")
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
    destination = take_over(training)
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
    return task, trainer, destination


def report(trainer: Trainer, split: str, metrics: dict[str, Any]) -> None:
    """Print a split's metrics and write them to the output folder (rank 0 only)."""
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)


if __name__ == "__main__":
    main()
