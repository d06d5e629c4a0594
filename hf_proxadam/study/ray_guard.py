"""Ends a Ray cluster on this machine with its driver, however that ended: `python -I ray_guard.py MARK`.

Started by `hf_proxadam.study.ray_runner`. When its standard input ends, it kills every process that has MARK in its
environment. Left to themselves, some of Ray's own processes live on for more than a minute after a driver that was
killed. It is run as a file, and knows psutil only, so that it costs no second copy of torch.
"""

import os
import sys
import time
from pathlib import Path

import psutil


def main() -> None:
    """Wait for the driver's end, then see to it that nothing is left."""
    sys.stdin.read()
    while left := [process for process in psutil.process_iter() if _is_marked(process, sys.argv[1])]:
        for process in left:
            process.kill()
        time.sleep(0.05)


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
            return False
        environ = Path(f"/proc/{process.pid}/environ")
        # As bytes where there are such: a process that changes its title writes over the first variables, after which
        # psutil finds none.
        return mark.encode() in environ.read_bytes() if environ.exists() else mark in process.environ()
    except (psutil.Error, OSError):  # it is gone, or another user's
        return False


if __name__ == "__main__":
    main()
