"""A worker process: takes cells from its standard input, one JSON line each, and answers on its standard output.

Started by `hf_proxadam.study.local`. It ends when its standard input does, so it can't outlive its driver, whatever
happened to that.
"""

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Run cells until the driver hangs up."""
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    answer = begin(lambda line: orders.put(json.loads(line)))

    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    import torch

    from hf_proxadam.study import store
    from hf_proxadam.study.cells import Cell
    from hf_proxadam.study.trial import run_cell

    torch.set_num_threads(threads)
    answer(ready=True)
    while True:
        cell = Cell.from_dict(orders.get())
        try:
            store.save_result(folder, run_cell(cell, folder))
        except Exception:
            answer(hash=cell.hash, error=traceback.format_exc())
        else:
            answer(hash=cell.hash, error=None)


def begin(take: Callable[[str], None]) -> Callable[..., None]:
    """Tie this process to its driver: to its orders, one line each, and to its life.

    Args:
        take: is given every line of standard input, in a thread of its own.

    Returns:
        A function that sends its keywords to the driver, as one JSON line.
    """
    # Ctrl-C goes to the whole process group; it is the driver that decides what then happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not get among the answers: from here on standard output is the log.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def listen() -> None:
        for line in sys.stdin:
            take(line)
        # The driver has hung up or is dead: nobody waits for the cell in hand, and its result would be a ghost's.
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return lambda **message: print(json.dumps(message), file=answers, flush=True)


if __name__ == "__main__":
    main()
