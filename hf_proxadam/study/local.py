"""Runs cells in long-lived worker processes on this machine, so that imports and data are paid for once per worker."""

import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from hf_proxadam.study import RunnerError
from hf_proxadam.study.cells import Cell
from hf_proxadam.study.runner import TICK_SECONDS, Event, Queue

# Workers that die one after the other before they are ready will not get better.
MAX_STILLBIRTHS = 3


class _Worker:
    """One worker process, what it is busy with, and where its output goes."""

    def __init__(self, number: int, folder: Path, threads: int, lock: int, device: int | None) -> None:
        self.cell: Cell | None = None
        self.ready = False
        self.log = log_file(folder, f"worker-{number}")
        variables = environment(threads, None if device is None else [device])
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hf_proxadam.study.worker", str(folder), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=variables,
                pass_fds=(lock,),
            )
        assert self.process.stdout is not None
        self.output = self.process.stdout

    def order(self, cell: Cell) -> None:
        """Give it a cell. That it is dead is learnt from its output ending, not from here."""
        assert self.process.stdin is not None
        self.cell = cell
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(dataclasses.asdict(cell)).encode() + b"\n")
            self.process.stdin.flush()

    def read(self) -> dict[str, Any] | None:
        """Read one answer; None if it is dead."""
        line = self.output.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def end(self) -> int:
        """Kill it (its results are written atomically, so there is nothing to lose) and return its exit code."""
        self.process.kill()
        code = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return code


class LocalRunner:
    """Runs cells on this machine, one process each; see `hf_proxadam.study.runner.Runner`.

    Args:
        folder: the study folder.
        workers: how many processes.
        threads: CPU threads of each.
        retries: how many times more a cell is tried whose training raised an error or whose worker died.
        lock: descriptor of the folder's lock, which the workers inherit.
        devices: if positive, the workers are spread over so many GPUs.
    """

    def __init__(self, folder: Path, workers: int, threads: int, retries: int, lock: int, devices: int = 0) -> None:
        self.folder, self.at_once, self.threads, self.retries = folder, workers, threads, retries
        self.lock, self.devices = lock, devices
        self._pool: dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()

    def run(self, cells: Sequence[Cell]) -> Generator[Event, None, None]:
        """Run all cells; a worker that dies is replaced."""
        queue, stillbirths = Queue(cells, self.retries, self.folder), 0
        try:
            for number in range(min(self.at_once, len(cells))):
                self._start(number)
            while queue.waiting or any(worker.cell for worker in self._pool.values()):
                for key, _ in self._selector.select(timeout=TICK_SECONDS):
                    worker, error = self._pool[key.data], ""
                    message = worker.read()
                    if message is None:
                        self._selector.unregister(worker.output)
                        error = f"The worker process died with exit code {worker.end()}.\n{tail(worker.log)}"
                        stillbirths = 0 if worker.ready else stillbirths + 1
                        if stillbirths >= MAX_STILLBIRTHS:
                            raise RunnerError(f"No worker process can be started. {error}")
                        self._start(key.data)
                    elif "ready" in message:
                        worker.ready, stillbirths = True, 0
                    else:
                        error = message["error"]
                    if worker.cell:
                        cell, worker.cell = worker.cell, None
                        yield queue.finish(cell, error)
                    worker = self._pool[key.data]
                    if worker.ready and queue.waiting:
                        cell = queue.waiting.popleft()
                        worker.order(cell)
                        yield Event(kind="started", cell=cell)
                yield Event(kind="tick")
        finally:
            for worker in self._pool.values():
                worker.end()
            self._selector.close()

    def _start(self, number: int) -> None:
        device = number % self.devices if self.devices else None
        worker = _Worker(number, self.folder, self.threads, self.lock, device)
        self._pool[number] = worker
        self._selector.register(worker.output, selectors.EVENT_READ, number)


def environment(threads: int, devices: Sequence[int] | None) -> dict[str, str]:
    """The environment of a process that trains, on the GPUs that are given, or on whatever it finds."""
    found = {**os.environ, **thread_variables(threads)}
    return found if devices is None else {**found, "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}


def thread_variables(threads: int) -> dict[str, str]:
    """What is set before any library is loaded, for some read it once, at import."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}


def log_file(folder: Path, name: str) -> Path:
    """Where a process's output goes; its folder is made."""
    log = folder / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return log


def tail(log: Path, size: int = 2000) -> str:
    """The end of a process's output."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode(errors="replace").strip()
