"""What runs cells: the protocol that all runners keep, what they tell, and how often they try."""

import collections
import dataclasses
import errno
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from hf_proxadam.study import RunnerError, store
from hf_proxadam.study.cells import Cell

# A runner yields at least so often, so that Ctrl-C and the status line never wait for a cell.
TICK_SECONDS = 1.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened: to `cell`, or, for a tick, nothing but that time went by."""

    kind: Literal["started", "done", "retry", "failed", "tick"]
    cell: Cell | None = None
    error: str = ""


class Runner(Protocol):
    """Something that runs cells.

    Attributes:
        at_once: how many cells run side by side.
    """

    at_once: int

    def run(self, cells: Sequence[Cell]) -> Generator[Event, None, None]:
        """Run all cells; yields what happens, and a tick at least about every `TICK_SECONDS`.

        A cell is `done` when its result lies in the study folder. Whoever stops iterating (Ctrl-C included) ends all
        processes at once; then only the cells in flight are lost. They end, too, when this process is killed.

        Raises:
            RunnerError: cells can't be run here at all, or the study folder can't take their results.
        """


class Queue:
    """The cells that wait, and how often each was tried.

    Args:
        cells: what is to be run, in this order.
        retries: how many times more a cell is tried whose training raised an error or whose process died.
        folder: the study folder, to be named where it is full.
    """

    def __init__(self, cells: Sequence[Cell], retries: int, folder: Path) -> None:
        self.waiting = collections.deque(cells)
        self.retries, self.folder = retries, folder
        self._attempts: collections.Counter[str] = collections.Counter()

    def finish(self, cell: Cell, error: str) -> Event:
        """Take note of how an attempt ended (`error` is empty for a good one); a cell that failed may wait again.

        Raises:
            RunnerError: there is no room for results, which no other attempt would change.
        """
        # A process that died just after it had saved the result has done its work.
        if not error or store.result_file(self.folder, cell.hash).is_file():
            return Event(kind="done", cell=cell)
        if is_no_room(error):
            raise RunnerError(no_room(self.folder))
        self._attempts[cell.hash] += 1
        again = self._attempts[cell.hash] <= self.retries
        if again:
            self.waiting.append(cell)
        return Event(kind="retry" if again else "failed", cell=cell, error=error)


def is_no_room(error: str) -> bool:
    """Whether a traceback (of another process) ends in the system's error for a full disk or a spent quota."""
    return any(f"[errno {number}]" in error.lower() for number in _NO_ROOM)


def no_room(folder: Path) -> str:
    """What to tell the person whose disk is full."""
    return (
        f"The disk that holds {folder} (or the folder for temporary files) is full: make room and run the same command "
        "again; finished cells are kept."
    )
