"""The Trainer that all experiments here run on: transformers' own, and what they need beside it."""

import os
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ExperimentTrainer(Trainer):
    """A Trainer that can multiply its loss, takes shares of classes as labels, and tells its dataset the epoch.

    - The loss is multiplied by `loss_multiplier` before the backward pass, as in the paper's test of scale-freeness: a
      scale-free optimizer must not care. Losses that are reported are those before the multiplication.
    - `labels` of type float and shape (batch, classes), as mixup makes them, are shares: the loss is their
      cross-entropy with the model's `logits`.
    - A training set with a method `begin_epoch(seed, epoch)` has it called before every epoch.
    - A checkpoint is loaded whole. transformers saves some models (ViT is one) under their weights' former names, and
      its Trainer then does not find those weights when it resumes (transformers issue 43701): it would go on from
      random ones.
    - A run that is resumed when all its steps were done takes none. transformers' takes one more where the last step is
      within an epoch.

    Args:
        loss_multiplier: a positive number.
        args: as every further argument, of `transformers.Trainer`.

    Raises:
        ValueError: the multiplier is out of its range.
    """

    def __init__(self, *args: Any, loss_multiplier: float = 1.0, **kwargs: Any) -> None:
        check_loss_multiplier(loss_multiplier)
        self.loss_multiplier = loss_multiplier
        self._loading: str | os.PathLike[str] | None = None
        super().__init__(*args, **kwargs)
        if hasattr(self.train_dataset, "begin_epoch"):
            self.add_callback(_TellEpoch(self.train_dataset))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute a batch's loss; while training, multiplied."""
        labels = inputs.get("labels")
        if labels is not None and labels.ndim == 2 and labels.is_floating_point():
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
            smoothing = self.args.label_smoothing_factor
            loss = functional.cross_entropy(outputs["logits"], labels, label_smoothing=smoothing)
        else:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training and self.loss_multiplier != 1:
            loss = loss * self.loss_multiplier
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Go forward and backward; returns the loss that is reported."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss if self.loss_multiplier == 1 else loss / self.loss_multiplier

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], torch.Tensor | int | None]:
        """Take the batches of the next step; where all steps were done before a resume, none, and stop."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        batches: tuple[list[Any], torch.Tensor | int | None] = super().get_batch_samples(*args, **kwargs)
        return batches

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._loading = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self._loading = self.state.best_model_checkpoint
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if not (load_result.missing_keys and self._loading and isinstance(self.model, PreTrainedModel)):
            super()._issue_warnings_after_load(load_result)
            return
        # from_pretrained knows the former names.
        stored = type(self.model).from_pretrained(self._loading, config=self.model.config, dtype=self.model.dtype)
        self.model.load_state_dict(stored.state_dict())


def check_loss_multiplier(multiplier: float) -> None:
    """Refuse a multiplier of the loss that is not a positive, finite number.

    Raises:
        ValueError: it is none.
    """
    if not 0 < multiplier < float("inf"):
        raise ValueError(f"loss_multiplier is {multiplier}; it must be a positive number, and 1 changes nothing.")


class _TellEpoch(TrainerCallback):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        seed = args.seed if args.data_seed is None else args.data_seed
        # In a run that is resumed within an epoch the number is no whole one.
        self.dataset.begin_epoch(seed, int(state.epoch or 0))
