"""Ends one of several processes that trained together, in spite of the threads that gloo leaves behind.

A thread of gloo's that is still putting the last reduction away needs the interpreter's lock. It aborts the process
("terminate called without an active exception") where the interpreter is ending by then, and waits for ever for a
thread that holds the lock and waits for it: one that takes down a DDP module which has outlived its process group.
https://github.com/pytorch/pytorch/issues/190489
"""

import os
import sys
import time
from typing import NoReturn

_FOR_THREADS_TO_FINISH = 0.1  # seconds


def end_process_group() -> None:
    """Do what a script should do that was one of several processes, and few do; without a process group, nothing."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        time.sleep(_FOR_THREADS_TO_FINISH)  # without the lock, which they then get
        distributed.destroy_process_group()


def leave() -> NoReturn:
    """End a process that has nothing left to do, with code 0 and at once: nothing is taken down, so nothing can fail.

    Functions registered with `atexit` are not called.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
