"""Trains an image classifier with the Trainer, and records the scales of its gradients.

    accelerate launch scripts/run_image_classification.py --dataset_name uoft-cs/cifar10 \
        --model_name_or_path resnet56 --normalization none --random_crop padded --random_flip true \
        --optim proxadam --optim_args decay_schedule=relative --learning_rate 5e-4 --weight_decay 5e-5 \
        --max_grad_norm 0 --num_train_epochs 300 --per_device_train_batch_size 128 --output_dir runs/resnet56

All of `transformers.TrainingArguments` can be given. It trains and evaluates, unless `--do_train` or `--do_eval` asks
for one of the two only. Data comes from the Hub, or with `--dataset_path FOLDER` from Parquet files
(FOLDER/train*.parquet, FOLDER/test*.parquet) or images (FOLDER/train/<class>/*.png, FOLDER/test/<class>/*.png). The
model is a pretrained one, one of the paper's networks, or with `--model_type vit --config_overrides patch_size=4,...`
one from its configuration alone, at the images' own size. The output folder then holds the model,
`all_results.json`, `run.json` (command, versions, the optimizer that really ran, time) and the gradient scales in
`scales/*.parquet`.
"""

import dataclasses

from transformers import TrainingArguments

import hf_proxadam  # noqa: F401  (registers the optimizers with transformers)
from hf_proxadam.report.persistence import HubError
from hf_proxadam.script import Parser, RunArguments, check, make_trainer, task_options, tell, train_and_evaluate
from hf_proxadam.tasks.augmentation import CROPS
from hf_proxadam.tasks.image_models import NORMALIZATIONS
from hf_proxadam.tasks.image_reading import UnreadableImageError
from hf_proxadam.tasks.images import ImageTask


@dataclasses.dataclass(kw_only=True)
class ImageArguments(RunArguments):
    """What this script takes beside TrainingArguments."""

    dataset_name: str | None = dataclasses.field(default=None, metadata={"help": "Dataset on the Hub, or"})
    dataset_path: str | None = dataclasses.field(
        default=None, metadata={"help": "local folder: Parquet in the Hub's layout, or images in a folder per class."}
    )
    dataset_config_name: str | None = dataclasses.field(
        default=None, metadata={"help": "Configuration of the dataset, where it has several."}
    )
    image_column: str | None = dataclasses.field(default=None, metadata={"help": "Default: its only column of images."})
    label_column: str | None = dataclasses.field(default=None, metadata={"help": "Default: label or labels."})
    model_name_or_path: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Pretrained model (Hub or folder), or with random weights resnet20, resnet44, resnet56, resnet110, "
            "resnet218 or densenet_bc_100, or"
        },
    )
    model_type: str | None = dataclasses.field(
        default=None, metadata={"help": "architecture with random weights, such as vit."}
    )
    config_overrides: str | None = dataclasses.field(
        default=None, metadata={"help": "key=value,key=value for the model's configuration."}
    )
    normalization: str = dataclasses.field(
        default="default",
        metadata={
            "help": "none: without normalisation layers (the paper's networks, model_type vit).",
            "choices": list(NORMALIZATIONS),
        },
    )
    image_size: int | None = dataclasses.field(
        default=None, metadata={"help": "Side in pixels; default: the pretrained model's, or the images' own."}
    )
    random_crop: str = dataclasses.field(
        default="none",
        metadata={"help": "padded for small images, resized for photographs.", "choices": list(CROPS)},
    )
    random_crop_padding: int = dataclasses.field(default=4, metadata={"help": "Black pixels per side for padded."})
    random_flip: bool = dataclasses.field(default=False, metadata={"help": "Mirror every second training image."})
    mixup_alpha: float = dataclasses.field(
        default=0.0, metadata={"help": "Mix training images in pairs, by Beta(alpha, alpha); 0 for never."}
    )
    skip_unreadable_images: bool = dataclasses.field(
        default=False,
        metadata={"help": "Leave unreadable images out, saying which; else the first ends the run."},
    )
    validation_fraction: float = dataclasses.field(
        default=0.0,
        metadata={
            "help": "Share of the training data held out for choosing hyper-parameters: it becomes the validation "
            "split, and the dataset's test (or validation) split is reported on at the end as `test`."
        },
    )
    max_train_samples: int | None = dataclasses.field(default=None, metadata={"help": "Use so many images only."})
    max_eval_samples: int | None = dataclasses.field(default=None, metadata={"help": "Use so many images only."})


def main() -> None:
    parser = Parser((ImageArguments, TrainingArguments), description="Train an image classifier.")
    try:
        options, training = parser.parse_args_into_dataclasses()
        if training.do_predict:
            raise ValueError("--do_predict is not supported: what has labels is evaluated with --do_eval.")
        destination = check(options, training)
        task = task_options(ImageTask, options)
        trainer = make_trainer(
            task,
            options,
            training,
            make_model=lambda: task.make_model(trained=not training.do_train),
            processing=lambda: task.image_processor,
        )
    except (ValueError, HubError) as error:
        parser.error(str(error))
    try:
        train_and_evaluate(trainer, task, options)
    except UnreadableImageError as error:  # images are read when their batch comes
        parser.error(str(error))
    tell(trainer, destination)


if __name__ == "__main__":
    main()
