"""Runs cells in long-lived worker processes on this machine, so that imports and data are paid for once per worker."""

import collections
import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Literal

from hf_proxadam.study import RunnerError
from hf_proxadam.study.cells import Cell

TICK_SECONDS = 1.0
# Workers that die one after the other before they are ready will not get better.
MAX_STILLBIRTHS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened: to `cell`, or, for a tick, nothing but that time went by."""

    kind: Literal["started", "done", "retry", "failed", "tick"]
    cell: Cell | None = None
    error: str = ""


class _Worker:
    """One worker process, what it is busy with, and where its output goes."""

    def __init__(self, number: int, folder: Path, threads: int, lock: int, device: int | None) -> None:
        self.cell: Cell | None = None
        self.ready = False
        self.log = folder / "logs" / f"worker-{number}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # Set before any library is loaded: some read these once, at import.
        variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        if device is not None:
            variables["CUDA_VISIBLE_DEVICES"] = str(device)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hf_proxadam.study.worker", str(folder), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **variables, "TOKENIZERS_PARALLELISM": "false"},
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
    """Runs cells on this machine.

    Args:
        folder: the study folder.
        workers: how many processes.
        threads: CPU threads of each.
        retries: how many times more a cell is tried whose training raised an error or whose worker died.
        lock: descriptor of the folder's lock, which the workers inherit.
        devices: if positive, the workers are spread over so many GPUs.
    """

    def __init__(self, folder: Path, workers: int, threads: int, retries: int, lock: int, devices: int = 0) -> None:
        self.folder, self.workers, self.threads, self.retries = folder, workers, threads, retries
        self.lock, self.devices = lock, devices
        self._pool: dict[int, _Worker] = {}
        self._selector = selectors.DefaultSelector()

    def run(self, cells: Sequence[Cell]) -> Generator[Event, None, None]:
        """Run all cells; yields what happens, and a tick at least about every second.

        Whoever stops iterating (Ctrl-C included) ends the workers at once; then only the cells in flight are lost.

        Raises:
            RunnerError: no worker can be started at all.
        """
        waiting = collections.deque(cells)
        attempts: collections.Counter[str] = collections.Counter()
        stillbirths = 0
        try:
            for number in range(min(self.workers, len(cells))):
                self._start(number)
            while waiting or any(worker.cell for worker in self._pool.values()):
                for key, _ in self._selector.select(timeout=TICK_SECONDS):
                    number = key.data
                    worker = self._pool[number]
                    message = worker.read()
                    if message is None:
                        self._selector.unregister(worker.output)
                        code = worker.end()
                        error = f"The worker process died with exit code {code}.\n{_tail(worker.log)}"
                        stillbirths = 0 if worker.ready else stillbirths + 1
                        if stillbirths >= MAX_STILLBIRTHS:
                            raise RunnerError(f"No worker process can be started. {error}")
                        self._start(number)
                    elif "ready" in message:
                        worker.ready, error, stillbirths = True, "", 0
                    else:
                        error = message["error"]
                    if worker.cell and not error:
                        yield Event(kind="done", cell=worker.cell)
                    elif worker.cell:
                        attempts[worker.cell.hash] += 1
                        again = attempts[worker.cell.hash] <= self.retries
                        if again:
                            waiting.append(worker.cell)
                        yield Event(kind="retry" if again else "failed", cell=worker.cell, error=error)
                    worker.cell = None
                    worker = self._pool[number]
                    if worker.ready and waiting:
                        cell = waiting.popleft()
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


def _tail(log: Path, size: int = 2000) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode(errors="replace").strip()
