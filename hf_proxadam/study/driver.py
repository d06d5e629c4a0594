"""Runs a study: whatever cells of it have no result yet."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import torch

from hf_proxadam import atomic
from hf_proxadam.study import RUNNERS, store
from hf_proxadam.study.cells import Cell, grid
from hf_proxadam.study.launch import LaunchRunner
from hf_proxadam.study.local import LocalRunner
from hf_proxadam.study.lock import study_lock
from hf_proxadam.study.mirror import Mirror
from hf_proxadam.study.parsing import one_of
from hf_proxadam.study.progress import Progress, show_seconds
from hf_proxadam.study.ray_runner import RayRunner
from hf_proxadam.study.runner import Runner
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
    runner: str = "local",
    address: str | None = None,
    mirror: Mirror | None = None,
) -> Outcome:
    """Run the cells that are not finished; with none left nothing is started and nothing changes.

    May be killed at any moment and called again: finished cells are kept, the others begin anew and come out as they
    would have. A study file that was changed in between keeps the cells that are still in it.

    Args:
        study: what to run.
        folder: the study folder; made if it is not there.
        workers: how many cells side by side; default: as many as there are GPUs for, or, on the CPU, as
            `training.threads` allows.
        command: the command line, for the record.
        stream: where progress goes; default: standard error.
        runner: one of `hf_proxadam.study.RUNNERS`: `local` (this machine) or `ray` (a cluster).
        address: of the Ray cluster; default: one on this machine.
        mirror: the folder's copy in an object store: finished cells come from there, and go there.

    Raises:
        ValueError: another driver works on the folder, an option is out of its range, or a file in the folder is torn
            or of another version.
        RunnerError: cells can't be run here at all, the disk is full, or the object store can't be used.
    """
    _check_runner(study, workers, runner, address)
    cells = grid(study)
    failed = []
    hashes = [cell.hash for cell in cells]
    with study_lock(folder) as lock:
        if mirror:
            mirror.fetch(hashes)
        results = {}
        for cell in cells:
            result = store.load_result(folder, cell.hash)
            if result is not None:
                results[cell.hash] = result
        waiting = [cell for cell in cells if cell.hash not in results]
        # Told anew only if there is something to add: a finished study keeps the record of how it was made.
        unchanged = store.says(folder, study.as_dict(), hashes)
        if waiting or not unchanged:
            store.save_study(folder, study.as_dict(), hashes, list(command))
        if not waiting:
            Progress(study, results, cells, 0, stream)
        else:
            chosen = _make_runner(study, folder, workers, runner, address, lock)
            progress = Progress(study, results, cells, chosen.at_once, stream)
            with contextlib.closing(progress), contextlib.closing(chosen.run(waiting)) as events:
                for event in events:
                    result = None
                    if event.cell and event.kind == "done":
                        result = store.load_result(folder, event.cell.hash)
                        if mirror:
                            mirror.send_cell(event.cell.hash)
                    if event.cell and event.error:
                        atomic.write_text(store.error_file(folder, event.cell.hash), event.error)
                    if event.cell and event.kind == "failed":
                        failed.append(event.cell)
                    progress.event(event, result)
        if mirror:
            mirror.send(hashes)
    return Outcome(total=len(cells), ran=len(waiting) - len(failed), failed=tuple(failed))


def describe(study: Study, folder: Path, workers: int | None = None, mirror: Mirror | None = None) -> str:
    """Say what `run_study` would do: the cells, which are finished, and the time that the others should take."""
    cells = grid(study)
    if mirror:
        mirror.fetch(cell.hash for cell in cells)
    results = {cell.hash: store.load_result(folder, cell.hash) for cell in cells}
    lines = [f"{cell.hash}  {'finished' if results[cell.hash] else 'to run':8}  {cell.title}" for cell in cells]
    seconds = [result["timing"]["train_seconds"] for result in results.values() if result]
    left = len(cells) - len(seconds)
    lines.append(f"{len(cells)} cells, {len(seconds)} finished, {left} to run.")
    if seconds and left:
        at_once = min(left, workers or _room(study, _devices(study)))
        estimate = sum(seconds) / len(seconds) * left / at_once
        lines.append(f"About {show_seconds(estimate)} with {at_once} workers, judging by the finished ones.")
    return "\n".join(lines)


def _check_runner(study: Study, workers: int | None, runner: str, address: str | None) -> None:
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1.")
    if runner not in RUNNERS:
        raise ValueError(f"runner is {runner!r}; {one_of(runner, RUNNERS)}")
    if address is not None and runner != "ray":
        raise ValueError(f"address is {address!r}, but the runner is {runner}: an address is for the runner ray.")
    each = study.training.processes_per_cell
    if each > 1 and runner == "ray":
        raise ValueError(f"processes_per_cell is {each}; with the runner ray it must be 1.")
    devices = _devices(study)
    if devices and each > devices:
        raise ValueError(f"processes_per_cell is {each}, but there are {devices} GPUs, and each process needs its own.")


def _make_runner(
    study: Study, folder: Path, workers: int | None, runner: str, address: str | None, lock: int
) -> Runner:
    training, devices = study.training, _devices(study)
    if runner == "ray":
        return RayRunner(folder, workers, training.threads, study.retries, address, training.use_cpu)
    room = _room(study, devices)
    if training.processes_per_cell > 1:
        # Cells never share a GPU here: there are as many side by side as find their own.
        at_once = min(workers or room, room) if devices else workers or room
        return LaunchRunner(folder, at_once, study.retries, lock, devices)
    return LocalRunner(folder, workers or room, training.threads, study.retries, lock, devices)


def _devices(study: Study) -> int:
    return 0 if study.training.use_cpu else torch.cuda.device_count()


def _room(study: Study, devices: int) -> int:
    """How many cells fit on this machine side by side."""
    each = study.training.processes_per_cell
    return max(1, (devices or _cores() // study.training.threads) // each)


def _cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
