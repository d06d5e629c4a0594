"""The recorder under the transformers Trainer."""

import functools
import math
import os
import sys
import uuid
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_proxadam.scales.parameters import DEEPSPEED_REFUSED
from hf_proxadam.scales.recorder import GradientScaleRecorder, check_at_least


class GradientScaleCallback(TrainerCallback, ExportableState):
    """Records the scales of gradients, updates and weights while a Trainer trains.

    `Trainer(callbacks=[GradientScaleCallback(every=10)])` is all it takes; TrainingArguments stay as they are. A few
    numbers about the whole model join the log line of the loss and so reach the trackers that `report_to` names
    (`hf_proxadam.scales.record.Record.summary`). After a resume from a checkpoint the rows of steps that are run again
    replace the old ones.

    Args:
        every: Steps from one record to the next, at least 1; the steps `every`, `2 * every`, ... are recorded.
        folder: Where the Parquet files go; by default `scales` in the Trainer's `output_dir`.
        exact_histograms: Whether the histograms of large tensors are made from all their coordinates.
        records_per_part: Records that one file holds, and that a kill can lose, at least 1.
        replace: Whether the records of another run in the folder are deleted; they are refused otherwise.

    Raises:
        ValueError: If a number is out of range; when training begins also if the folder can't be written or holds
            another run's records, or under DeepSpeed and FSDP1.
    """

    def __init__(
        self,
        every: int = 10,
        folder: str | os.PathLike[str] | None = None,
        *,
        exact_histograms: bool = False,
        records_per_part: int = 16,
        replace: bool = False,
    ) -> None:
        check_at_least("every", every, 1)
        check_at_least("records_per_part", records_per_part, 1)
        self.every = every
        self.folder = None if folder is None else os.fspath(folder)
        self.exact_histograms = exact_histograms
        self.records_per_part = records_per_part
        self.replace = replace
        self.recorder: GradientScaleRecorder | None = None
        """At work from the beginning of the training to its end; kept after it."""
        self.run: str | None = None
        """Name of the run that is recorded; checkpoints keep it."""
        self._listening_to: Any = None
        self._heard = False

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps. The records up to it are written first."""
        if self.recorder is not None:
            self.recorder.flush()
        names = ("every", "folder", "exact_histograms", "records_per_part", "replace")
        return {"args": {name: getattr(self, name) for name in names}, "attributes": {"run": self.run}}

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse DeepSpeed before anything is loaded."""
        # The plugin is there, too, where `accelerate launch` asks for DeepSpeed and the arguments don't.
        if getattr(args, "deepspeed", None) or getattr(args, "deepspeed_plugin", None):
            raise ValueError(DEEPSPEED_REFUSED)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to record, or go on after a checkpoint."""
        self._stop()
        folder = os.path.join(args.output_dir, "scales") if self.folder is None else self.folder
        resume = None
        if state.global_step > 0:
            resume = {"run": self._run_of_checkpoint(state) or uuid.uuid4().hex, "step": state.global_step}
        self.recorder = GradientScaleRecorder(
            kwargs["model"],
            kwargs["optimizer"],
            folder,
            self.every,
            exact_histograms=self.exact_histograms,
            records_per_part=self.records_per_part,
            replace=self.replace,
            resume=resume,
        )
        self.run = self.recorder.run
        # The Trainer looks for its callbacks' entries when it saves, and a checkpoint made without this one has none.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        trainer = _calling_trainer()
        if trainer is not None:
            self._go_first(trainer.callback_handler.callbacks)
            self._listen(trainer.accelerator)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the recorder which step comes."""
        assert self.recorder is not None
        self.recorder.step = state.global_step
        if args.max_grad_norm and not self._heard:
            self.recorder.clipping_unknown()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notice a step that was skipped after an overflow: the optimizer's hooks didn't run."""
        assert self.recorder is not None
        self._heard = False
        if self.recorder.step == state.global_step:
            self.recorder.step_skipped()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Enter the epoch, which is known only now."""
        if self.recorder is not None and state.epoch is not None:
            self.recorder.set_epoch(state.epoch)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the numbers of a new record to the log line of the loss."""
        if self.recorder is None or logs is None or "loss" not in logs:
            return
        summary = self.recorder.summary()
        logs.update(summary)
        if summary and state.log_history:
            state.log_history[-1].update(summary)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is left."""
        self._stop()

    def _stop(self) -> None:
        if self.recorder is not None:
            self.recorder.close()
        if self._listening_to is not None:
            vars(self._listening_to).pop("clip_grad_norm_", None)
            self._listening_to = None

    def _run_of_checkpoint(self, state: TrainerState) -> str | None:
        stored: Any = state.stateful_callbacks.get(type(self).__name__)
        mine = self.state()["args"]
        for entry in stored if isinstance(stored, list) else [stored]:
            if entry and (not isinstance(stored, list) or entry["args"]["folder"] == mine["folder"]):
                return entry["attributes"]["run"]
        return None

    def _go_first(self, callbacks: list[TrainerCallback]) -> None:
        # The reporters are called before the user's callbacks, too early to see what those add to the logs. In the
        # loop that is calling us, the callbacks after us keep their places.
        callbacks.remove(self)
        callbacks.insert(0, self)

    def _listen(self, accelerator: Any) -> None:
        """Learn the norm that gradients were clipped by: no event of the Trainer tells it."""
        clip_grad_norm_ = accelerator.clip_grad_norm_

        @functools.wraps(clip_grad_norm_)
        def listening(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
            total_norm = clip_grad_norm_(parameters, max_norm, *args, **kwargs)
            if self.recorder is not None and total_norm is not None and max_norm < math.inf:
                self.recorder.clipped(total_norm, max_norm)
                self._heard = True
            return total_norm

        accelerator.clip_grad_norm_ = listening
        self._listening_to = accelerator


def _calling_trainer() -> Any:
    """Find the Trainer whose event is being handled: events don't carry it, and it alone knows its callbacks."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if hasattr(caller, "callback_handler") and hasattr(caller, "accelerator"):
            return caller
        frame = frame.f_back
    return None
