"""What the scripts that train one model share: options, checks, the Trainer, and what is left in the output folder."""

import dataclasses
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from transformers import HfArgumentParser, PreTrainedModel, TrainingArguments, set_seed

from hf_proxadam import report as reports
from hf_proxadam.report.persistence import HubError
from hf_proxadam.report.pushing import Destination, take_over
from hf_proxadam.scales import GradientScaleCallback
from hf_proxadam.study import run_record
from hf_proxadam.study.optimizers import check_training_optimizer
from hf_proxadam.tasks.base import RecordedTask, Task, unscaled
from hf_proxadam.trainer.ending import end_process_group
from hf_proxadam.trainer.experiment import ExperimentTrainer, check_loss_multiplier

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class RunArguments:
    """What every script takes beside TrainingArguments and the options of its task."""

    record_scales_every: int = dataclasses.field(
        default=10, metadata={"help": "Record the gradient scales every so many steps; 0 for never."}
    )
    loss_multiplier: float = dataclasses.field(
        default=1.0,
        metadata={
            "help": "Multiply the loss before the backward pass, as in the paper's test: scale-free optimizers don't "
            "care. Reported losses are those before it."
        },
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
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")
        sys.exit(2)


def task_options(task: type[T], given: Any) -> T:
    """Make a task from those of the given options that are its fields."""
    return task(**{field.name: getattr(given, field.name) for field in dataclasses.fields(task)})  # type: ignore[arg-type]


def check(run: RunArguments, training: TrainingArguments) -> Destination | None:
    """Check what every script takes, so that what is wrong is said before data and model are loaded.

    Returns:
        Where the model is published at the end; None if it is not.

    Raises:
        ValueError: an option is out of its range, a path can't be used, or the optimizer would not start.
        HubError: `--push_to_hub` where nothing can be published to.
    """
    if run.record_scales_every < 0:
        raise ValueError(f"record_scales_every is {run.record_scales_every}; it must be at least 1, or 0 for never.")
    check_loss_multiplier(run.loss_multiplier)
    if Path(training.output_dir).is_file():
        raise ValueError(f"output_dir is {training.output_dir!r}, which is a file; give a folder.")
    # TrainingArguments turn do_eval on by themselves for an eval_strategy, which makes sense in a training only.
    only_eval = training.do_eval and str(getattr(training.eval_strategy, "value", training.eval_strategy)) == "no"
    if not (training.do_train or only_eval or training.do_predict):
        training.do_train = training.do_eval = True
    if training.push_to_hub and not training.do_train:
        raise ValueError("--push_to_hub publishes what was trained: give --do_train, or use `hf-proxadam publish`.")
    if (training.resume_from_checkpoint or "").lower() in ("last", "true"):
        training.resume_from_checkpoint = str(last_checkpoint(Path(training.output_dir)))
    resume, scales = training.resume_from_checkpoint, Path(training.output_dir) / "scales"
    if resume and not Path(resume).is_dir():
        raise ValueError(f"resume_from_checkpoint is {resume!r}, but there is no such folder.")
    if training.do_train and run.record_scales_every and not resume and any(scales.glob("*.parquet")):
        raise ValueError(f"{scales} holds another run's records: resume that run, or give another --output_dir.")
    check_training_optimizer(training)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO if training.process_index == 0 else logging.WARNING)
    return take_over(training)


def last_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint in an output folder: one that was being written when the process died is passed over.

    Raises:
        ValueError: there is none.
    """
    # The Trainer writes trainer_state.json last.
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    numbered = {int(path.name.partition("-")[2]): path for path in whole if path.name.partition("-")[2].isdecimal()}
    if not numbered:
        raise ValueError(
            f"There is no whole checkpoint in {folder} to resume from: leave --resume_from_checkpoint out."
        )
    return numbered[max(numbered)]


def make_trainer(
    task: Task,
    run: RunArguments,
    training: TrainingArguments,
    make_model: Callable[[], PreTrainedModel],
    processing: Callable[[], Any],
) -> ExperimentTrainer:
    """Load data and model, and make the Trainer.

    Args:
        task: what is trained.
        run: the scripts' own options.
        training: the Trainer's.
        make_model: makes the model, after all random generators were seeded.
        processing: makes the trainer's `processing_class` (tokenizer or image processor), saved beside the model.

    Raises:
        ValueError: data or model are not there or not as they should be.
    """
    # On several processes the first one prepares the data, and the others read its cache.
    labelled = training.do_train or training.do_eval
    with training.main_process_first(desc="preparing the data"):
        train, validation = (task.train, task.validation) if labelled else (None, None)
    set_seed(training.seed)
    model: PreTrainedModel = unscaled(make_model())
    return ExperimentTrainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=task.collate,
        compute_metrics=task.compute_metrics,
        processing_class=processing(),
        # Given here and not added later, so that it can refuse what it can't record before anything is trained.
        callbacks=[GradientScaleCallback(every=run.record_scales_every)] if run.record_scales_every else [],
        loss_multiplier=run.loss_multiplier,
    )


def train_and_evaluate(trainer: ExperimentTrainer, task: RecordedTask, options: Any) -> None:
    """Run what was asked for; model, metrics and `run.json` go to the output folder.

    Args:
        trainer: as `make_trainer` made it.
        task: what is trained.
        options: the script's own options, a dataclass, for `run.json`.
    """
    training = trainer.args
    if training.do_train:
        trained = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
        trainer.save_model()
        trainer.save_state()
        report(trainer, "train", trained.metrics)
        if trainer.is_world_process_zero():
            record = dataclasses.asdict(options)
            run_record.write(trainer, record, task.describe(), trained.metrics, options.license, options.base_model)
    if training.do_eval:
        report(trainer, "eval", trainer.evaluate())
        if task.has_test:
            report(trainer, "test", trainer.evaluate(task.test, metric_key_prefix="test"))


def report(trainer: ExperimentTrainer, split: str, metrics: dict[str, Any]) -> None:
    """Print a split's metrics and write them to the output folder (rank 0 only)."""
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)


def tell(trainer: ExperimentTrainer, destination: Destination | None) -> None:
    """Make the model's card, and publish both if that was asked for (rank 0 only), and end the process group.

    Call it at the end: the processes can't speak with one another after it.

    Raises:
        SystemExit: with code 1 and one sentence, where the Hub refused or could not be reached.
    """
    end_process_group()
    folder = Path(trainer.args.output_dir)
    if not (trainer.is_world_process_zero() and (folder / run_record.FILE_NAME).is_file()):
        return
    logger.info("The card: %s", reports.make(folder))
    try:
        if destination is not None:
            logger.info(destination.publish(folder))
    except HubError as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {error}\n")
        sys.exit(1)
