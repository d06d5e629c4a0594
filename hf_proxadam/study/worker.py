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
from pathlib import Path
from typing import Any


def main() -> None:
    """Run cells until the driver hangs up."""
    # Ctrl-C goes to the whole process group; it is the driver that decides what then happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not get among the answers: from here on standard output is the log.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def answer(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()

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


def _listen(orders: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    # The driver has hung up or is dead: nobody waits for the cell in hand, and its result would be written by a ghost.
    os._exit(0)


if __name__ == "__main__":
    main()
