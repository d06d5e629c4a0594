"""Runs cells on a Ray cluster: each where there is room for it, and once more elsewhere where its machine is lost.

Results travel through Ray to the driver, which alone writes to the study folder: no folder need be shared, and what a
lost driver left running can't write anything.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from hf_proxadam import atomic
from hf_proxadam.study import RunnerError, store
from hf_proxadam.study.cells import Cell
from hf_proxadam.study.local import thread_variables
from hf_proxadam.study.runner import TICK_SECONDS, Event, Queue

# A cell's result, and its gradient scales: file names with their contents.
_Trained = tuple[dict[str, Any], dict[str, bytes]]


class RayRunner:
    """Runs cells on a Ray cluster; see `hf_proxadam.study.runner.Runner`.

    Args:
        folder: the study folder.
        workers: how many cells side by side; default: as many as the cluster has room for, as it grows and shrinks.
        threads: CPU threads of each.
        retries: how many times more a cell is tried whose training raised an error or whose process or machine died.
        address: of the cluster that this machine belongs to: `auto` or HOST:PORT; default: one on this machine alone,
            which ends with the driver.
        use_cpu: train on the CPU even where there are GPUs; otherwise every cell gets a GPU of its own, if the cluster
            has any.

    Raises:
        RunnerError: Ray is not installed, there is no such cluster, or it has no room for a single cell.
    """

    def __init__(
        self, folder: Path, workers: int | None, threads: int, retries: int, address: str | None, use_cpu: bool
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told that a study runs here
        try:
            import ray
        except ImportError as error:
            raise RunnerError("The runner ray needs the package ray: pip install 'hf_proxadam[ray]'.") from error
        self.ray, self.folder, self.threads, self.retries = ray, folder, threads, retries
        self.workers, self.use_cpu = workers, use_cpu
        self._guard = None if address else self._start_guard()
        try:
            local = {"num_cpus": workers * threads} if workers and not address else {}
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
            self.at_once = self._room()
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            self._end()
            raise RunnerError(f"No Ray cluster answers at {address or 'this machine'}: {error}") from error
        if not self.at_once:
            self._end()
            raise RunnerError(f"The Ray cluster has no machine with {threads} free CPU cores for a cell's threads.")

    def run(self, cells: Sequence[Cell]) -> Generator[Event, None, None]:
        """Run all cells."""
        ray, queue, running = self.ray, Queue(cells, self.retries, self.folder), dict[Any, Cell]()
        train = ray.remote(_train).options(
            num_cpus=self.threads,
            num_gpus=int(self._has_gpus()),
            max_retries=0,  # the queue counts the attempts, and tells them
            runtime_env={"env_vars": thread_variables(self.threads)},
        )
        try:
            while queue.waiting or running:
                while queue.waiting and len(running) < self._room():
                    cell = queue.waiting.popleft()
                    running[train.remote(dataclasses.asdict(cell), self.threads)] = cell
                    yield Event(kind="started", cell=cell)
                finished, _ = ray.wait(list(running), timeout=TICK_SECONDS) if running else ([], [])
                for reference in finished:
                    cell, error = running.pop(reference), ""
                    try:
                        trained = ray.get(reference)
                    except ray.exceptions.RayError as problem:
                        error = str(problem)
                    else:
                        self._save(cell, trained)
                    yield queue.finish(cell, error)
                yield Event(kind="tick")
        finally:
            self._end()  # Ray ends what its driver left running, and aborts where a task ends as it is cancelled

    def _start_guard(self) -> "subprocess.Popen[bytes]":
        """Have every process that Ray starts from here on end with this one."""
        mark = f"HF_PROXADAM_CLUSTER_{uuid.uuid4().hex}"
        guard = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("ray_guard.py")), mark],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the driver, which then ends it
        )
        os.environ[mark] = "1"
        return guard

    def _end(self) -> None:
        """Leave the cluster, and end it if it is our own."""
        self.ray.shutdown()
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait()

    def _room(self) -> int:
        """How many cells the cluster has room for at present."""
        room = 0
        for node in self.ray.nodes():
            if node["Alive"]:
                cores = node["Resources"].get("CPU", 0) // self.threads
                room += int(min(cores, node["Resources"].get("GPU", 0)) if self._has_gpus() else cores)
        return min(room, self.workers) if self.workers else room

    def _has_gpus(self) -> bool:
        return not self.use_cpu and self.ray.cluster_resources().get("GPU", 0) > 0

    def _save(self, cell: Cell, trained: _Trained) -> None:
        result, scales = trained
        shutil.rmtree(store.scales_folder(self.folder, cell.hash), ignore_errors=True)  # of an interrupted attempt
        for name, content in scales.items():
            atomic.write_bytes(store.scales_folder(self.folder, cell.hash) / name, content)
        store.save_result(self.folder, result)


def _train(cell_as_dict: dict[str, Any], threads: int) -> _Trained:
    """Train one cell on whatever machine this is."""
    import torch

    from hf_proxadam.study.trial import run_cell

    torch.set_num_threads(threads)
    cell = Cell.from_dict(cell_as_dict)
    with tempfile.TemporaryDirectory(prefix="hf-proxadam-") as scratch:
        result = run_cell(cell, Path(scratch))
        scales = store.scales_folder(Path(scratch), cell.hash)
        return result, {path.name: path.read_bytes() for path in sorted(scales.glob("*.parquet"))}
