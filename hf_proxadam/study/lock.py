"""One driver per study folder."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

# Workers hold the lock too (they inherit it) and take a moment to notice that their driver was killed.
PATIENCE_SECONDS = 5.0


@contextlib.contextmanager
def study_lock(folder: Path, patience: float = PATIENCE_SECONDS) -> Iterator[int]:
    """Hold the folder's lock.

    The lock is the kernel's (`flock`), so it is gone with the last process that holds it, however that one ended:
    there is never a stale lock to remove by hand.

    Yields:
        The lock's file descriptor, for handing on to workers: as long as one of them lives, nobody else runs the same
        cells.

    Raises:
        ValueError: another driver works on the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = os.pread(descriptor, 20, 0).decode().strip() or "unknown"
                    raise ValueError(
                        f"Another run (process {holder}) works on {folder}: wait for it to end, or stop it first."
                    ) from None
                time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
