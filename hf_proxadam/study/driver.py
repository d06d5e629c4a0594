"""Runs a study: whatever cells of it have no result yet."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import torch

from hf_proxadam import atomic
from hf_proxadam.study import store
from hf_proxadam.study.cells import Cell, grid
from hf_proxadam.study.local import LocalRunner
from hf_proxadam.study.lock import study_lock
from hf_proxadam.study.progress import Progress, show_seconds
from hf_proxadam.study.spec import Study


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one call of `run_study` did."""

    total: int
    ran: int
    failed: tuple[Cell, ...]


def run_study(
    study: Study,
    folder: Path,
    workers: int | None = None,
    command: Sequence[str] = (),
    stream: TextIO | None = None,
) -> Outcome:
    """Run the cells that are not finished; with none left nothing is started and nothing changes.

    May be killed at any moment and called again: finished cells are kept, the others begin anew and come out as they
    would have. A study file that was changed in between keeps the cells that are still in it.

    Args:
        study: what to run.
        folder: the study folder; made if it is not there.
        workers: worker processes; default: one per GPU, or, on the CPU, as many as `training.threads` allows.
        command: the command line, for the record.
        stream: where progress goes; default: standard error.

    Raises:
        ValueError: another driver works on the folder, `workers` is below 1, or a file in the folder is torn or of
            another version.
        RunnerError: no worker process can be started.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1.")
    cells = grid(study)
    devices = 0 if study.training.use_cpu else torch.cuda.device_count()
    workers = workers or devices or max(1, _cores() // study.training.threads)
    failed = []
    with study_lock(folder) as lock:
        results = {}
        for cell in cells:
            result = store.load_result(folder, cell.hash)
            if result is not None:
                results[cell.hash] = result
        waiting = [cell for cell in cells if cell.hash not in results]
        # Told anew only if there is something to add: a finished study keeps the record of how it was made.
        hashes = [cell.hash for cell in cells]
        if waiting or not store.says(folder, study.as_dict(), hashes):
            store.save_study(folder, study.as_dict(), hashes, list(command))
        progress = Progress(study, results, cells, workers, stream)
        if waiting:
            runner = LocalRunner(folder, workers, study.training.threads, study.retries, lock, devices)
            with contextlib.closing(progress), contextlib.closing(runner.run(waiting)) as events:
                for event in events:
                    result = None
                    if event.cell and event.kind == "done":
                        result = store.load_result(folder, event.cell.hash)
                    if event.cell and event.error:
                        atomic.write_text(store.error_file(folder, event.cell.hash), event.error)
                    if event.cell and event.kind == "failed":
                        failed.append(event.cell)
                    progress.event(event, result)
    return Outcome(total=len(cells), ran=len(waiting) - len(failed), failed=tuple(failed))


def describe(study: Study, folder: Path, workers: int | None = None) -> str:
    """Say what `run_study` would do: the cells, which are finished, and the time that the others should take."""
    cells = grid(study)
    results = {cell.hash: store.load_result(folder, cell.hash) for cell in cells}
    lines = [f"{cell.hash}  {'finished' if results[cell.hash] else 'to run':8}  {cell.title}" for cell in cells]
    seconds = [result["timing"]["train_seconds"] for result in results.values() if result]
    left = len(cells) - len(seconds)
    lines.append(f"{len(cells)} cells, {len(seconds)} finished, {left} to run.")
    if seconds and left:
        at_once = min(left, workers or max(1, _cores() // study.training.threads))
        estimate = sum(seconds) / len(seconds) * left / at_once
        lines.append(f"About {show_seconds(estimate)} with {at_once} workers, judging by the finished ones.")
    return "\n".join(lines)


def _cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
