"""Says how far a study is: a line per finished cell, and on a terminal a status line below that is kept up to date."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from hf_proxadam.study import store
from hf_proxadam.study.cells import Cell, title
from hf_proxadam.study.runner import Event
from hf_proxadam.study.spec import Study

# Without a terminal the status is a line of its own, now and then.
PLAIN_STATUS_SECONDS = 30.0


class Progress:
    """Counts cells and prints what a person waiting wants to know.

    Args:
        study: gives the selection metric and the order of the optimizers.
        results: what is finished already, by cell hash.
        cells: all cells of the study.
        workers: how many run side by side, for the time left; 0 where none are to be run.
        stream: where to print; default: standard error, so that standard output stays for the result.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        study: Study,
        results: dict[str, dict[str, Any]],
        cells: list[Cell],
        workers: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study, self.cells, self.workers = study, cells, workers
        self.stream = sys.stderr if stream is None else stream
        self.clock = clock
        self.live = self.stream.isatty()
        self.done, self.failed, self.diverged = 0, 0, 0
        self.running: dict[str, float] = {}
        self.seconds: list[float] = []
        self.best: dict[str, float] = {}
        self._labels = list(dict.fromkeys(_label(cell.point) for cell in cells))
        self.last_status = clock()
        for result in results.values():
            self._count(result)
        at_a_time = f", {workers} at a time" if workers else ""
        self._print(f"{study.name}: {len(cells)} cells, {self.done} finished before{at_a_time}.")

    def event(self, event: Event, result: dict[str, Any] | None = None) -> None:
        """Take note of an event; `result` belongs to a `done` one."""
        now, cell = self.clock(), event.cell
        if event.kind == "started" and cell:
            self.running[cell.hash] = now
        elif cell:
            seconds = now - self.running.pop(cell.hash, now)
            if event.kind == "done" and result:
                self.seconds.append(seconds)
                self._count(result)
                self._print(f"[{self.done:>{len(str(len(self.cells)))}}/{len(self.cells)}] {self._outcome(result)}")
            else:
                self.failed += event.kind == "failed"
                what = "failed; trying again" if event.kind == "retry" else "failed for good"
                self._print(f"{cell.title}: {what}. {event.error.strip().splitlines()[-1]}")
        if self.live:
            columns = shutil.get_terminal_size().columns
            self.stream.write("\r\x1b[2K" + self.status()[: columns - 1])
            self.stream.flush()
        elif now - self.last_status >= PLAIN_STATUS_SECONDS:
            self.last_status = now
            self._print(self.status())

    def close(self) -> None:
        """Leave the status as the last line."""
        self._print(self.status())

    def status(self) -> str:
        """Done, running, failed, time left and best so far, in one line."""
        parts = [f"{self.done} of {len(self.cells)} cells done", f"{len(self.running)} running"]
        parts.append(f"{self.failed} failed")
        if self.diverged:
            parts.append(f"{self.diverged} diverged")
        left = self.seconds_left()
        if left is not None:
            parts.append(f"about {show_seconds(left)} left")
        best = ", ".join(f"{label} {self.best[label]:.4f}" for label in self._labels if label in self.best)
        if best:
            parts.append(f"best validation {self.study.selection_metric}: {best}")
        return "; ".join(parts)

    def seconds_left(self) -> float | None:
        """Estimate from the cells of this run; None before the first and after the last."""
        left = len(self.cells) - self.done - self.failed
        if not self.seconds or left <= 0:
            return None
        each = sum(self.seconds) / len(self.seconds)
        begun = sum(min(each, self.clock() - start) for start in self.running.values())
        return (left * each - begun) / min(self.workers, left)

    def _count(self, result: dict[str, Any]) -> None:
        self.done += 1
        if result["status"] == "diverged":
            self.diverged += 1
            return
        label, score = _label(result["cell"]), result["validation"][self.study.selection_metric]
        better = max if self.study.greater_is_better else min
        self.best[label] = better(score, self.best.get(label, score))

    def _outcome(self, result: dict[str, Any]) -> str:
        metric = self.study.selection_metric
        score = "diverged"
        if result["status"] != "diverged":
            score = f"validation {metric} {result['validation'][metric]:.4f}"
        return f"{title(result['cell'])}: {score} in {result['timing']['train_seconds']:.1f} s"

    def _print(self, line: str) -> None:
        self.stream.write(("\r\x1b[2K" if self.live else "") + line + "\n")
        self.stream.flush()


def _label(point: dict[str, Any]) -> str:
    """What is compared with what: an optimizer, in one of the study's settings."""
    setting = store.setting(point)
    return f"{point['optimizer']} ({setting})" if setting else str(point["optimizer"])


def show_seconds(seconds: float) -> str:
    """Write a duration as people say it."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
