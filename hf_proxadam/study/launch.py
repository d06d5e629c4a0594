"""Runs cells over several processes each (data parallel), every cell by one `accelerate launch` on this machine."""

import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import psutil

from hf_proxadam.study.cells import Cell
from hf_proxadam.study.local import environment, log_file, tail
from hf_proxadam.study.runner import TICK_SECONDS, Event, Queue

# As for several GPUs also on the CPU, where accelerate would start a single process otherwise.
_LAUNCH = ("--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0")


class _Launched:
    """One cell's processes."""

    def __init__(self, cell: Cell, slot: int, folder: Path, devices: Sequence[int], lock: int) -> None:
        self.cell, self.slot = cell, slot
        self.log = log_file(folder, f"launch-{slot}")
        training = cell.training
        variables = environment(training.threads, devices or None)
        if not devices:
            variables["ACCELERATE_USE_CPU"] = "true"
        launch = [sys.executable, "-m", "accelerate.commands.launch", *_LAUNCH]
        launch += [f"--num_processes={training.processes_per_cell}", "-m", "hf_proxadam.study.launched"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*launch, str(folder), str(training.threads), json.dumps(dataclasses.asdict(cell))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=variables,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C is for the driver, which then ends them all
            )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        os.set_blocking(self.output.fileno(), False)
        self._answered = b""
        self._answer: dict[str, str | None] | None = None

    def read(self) -> bool:
        """Take what was answered; whether that, the end of it, or the launcher's death leaves nothing to wait for."""
        # Asked first: whatever was answered before it died is read below.
        is_dead = self.process.poll() is not None
        while True:
            try:
                chunk = os.read(self.output.fileno(), 65536)
            except BlockingIOError:
                return is_dead
            self._answered += chunk
            for line in self._answered.splitlines():
                with contextlib.suppress(ValueError):  # half a line, or what the launcher printed
                    answer = json.loads(line)
                    if isinstance(answer, dict) and "error" in answer:
                        self._answer = answer
                        return True
            if not chunk:
                return True

    def error(self) -> str:
        """What went wrong; empty if nothing did. Ends what is left of its processes."""
        code = self.end()
        if self._answer is None:
            return f"{tail(self.log)}\nThe cell's processes died; their launcher's exit code is {code}."
        return self._answer["error"] or ""

    def end(self) -> int:
        """Kill what is left of its processes and return the launcher's exit code.

        The launcher puts the processes that train into sessions of their own, so its process group is not enough.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # which also ends those whose launcher was killed
        self.output.close()
        return self.process.wait()


class LaunchRunner:
    """Runs cells on this machine, several processes each; see `hf_proxadam.study.runner.Runner`.

    Args:
        folder: the study folder.
        at_once: how many cells side by side.
        retries: how many times more a cell is tried whose training raised an error or whose processes died.
        lock: descriptor of the folder's lock, which the launchers inherit.
        devices: GPUs of this machine, of which every cell gets its own; 0 for the CPU.
    """

    def __init__(self, folder: Path, at_once: int, retries: int, lock: int, devices: int = 0) -> None:
        self.folder, self.at_once, self.retries, self.lock, self.devices = folder, at_once, retries, lock, devices
        self._selector = selectors.DefaultSelector()

    def run(self, cells: Sequence[Cell]) -> Generator[Event, None, None]:
        """Run all cells."""
        queue, free, running = Queue(cells, self.retries, self.folder), list(range(self.at_once)), set[_Launched]()
        try:
            while queue.waiting or running:
                while free and queue.waiting:
                    launched = self._start(queue.waiting.popleft(), free.pop())
                    running.add(launched)
                    yield Event(kind="started", cell=launched.cell)
                self._selector.select(timeout=TICK_SECONDS)
                for launched in [launched for launched in running if launched.read()]:
                    self._selector.unregister(launched.output)
                    error = launched.error()
                    running.remove(launched)
                    free.append(launched.slot)
                    yield queue.finish(launched.cell, error)
                yield Event(kind="tick")
        finally:
            for launched in running:
                launched.end()
            self._selector.close()

    def _start(self, cell: Cell, slot: int) -> _Launched:
        each = cell.training.processes_per_cell
        devices = range(slot * each, (slot + 1) * each) if self.devices else ()
        launched = _Launched(cell, slot, self.folder, devices, self.lock)
        self._selector.register(launched.output, selectors.EVENT_READ, launched)
        return launched
