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
from pathlib import Path

from transformers import TrainingArguments

import hf_proxadam  # noqa: F401  (registers the optimizers with transformers)
from hf_proxadam.report.persistence import HubError
from hf_proxadam.report.pushing import Destination
from hf_proxadam.script import (
    Parser,
    RunArguments,
    check,
    make_trainer,
    report,
    task_options,
    tell,
    train_and_evaluate,
)
from hf_proxadam.tasks.glue import GLUE, GlueTask
from hf_proxadam.trainer.experiment import ExperimentTrainer


@dataclasses.dataclass(kw_only=True)
class GlueArguments(RunArguments):
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


def main() -> None:
    parser = Parser((GlueArguments, TrainingArguments), description="Fine-tune on GLUE and record gradient scales.")
    try:
        options, training = parser.parse_args_into_dataclasses()
        task, trainer, destination = prepare(options, training)
    except (ValueError, HubError) as error:
        parser.error(str(error))
    train_and_evaluate(trainer, task, options)
    if training.do_eval and task.mismatched is not None:
        split = "test_mismatched" if task.has_test else "eval_mismatched"
        report(trainer, split, trainer.evaluate(task.mismatched, metric_key_prefix=split))
    if training.do_predict:
        predict(trainer, task)
    tell(trainer, destination)


def prepare(
    options: GlueArguments, training: TrainingArguments
) -> tuple[GlueTask, ExperimentTrainer, Destination | None]:
    """Check everything and load data and model, so that what is wrong is said before the first step."""
    destination = check(options, training)
    task = task_options(GlueTask, options)
    trainer = make_trainer(
        task,
        options,
        training,
        make_model=lambda: task.make_model(trained=not training.do_train),
        processing=lambda: task.tokenizer,
    )
    if training.do_predict:
        with training.main_process_first(desc="tokenising"):
            _ = task.unlabelled
    return task, trainer, destination


def predict(trainer: ExperimentTrainer, task: GlueTask) -> None:
    """Write the benchmark's submission files."""
    for file, rows in task.unlabelled.items():
        predictions = trainer.predict(rows).predictions
        if trainer.is_world_process_zero():
            task.write_submission(Path(trainer.args.output_dir) / file, rows, predictions)


if __name__ == "__main__":
    main()
