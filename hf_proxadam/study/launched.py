"""One of the processes that train one cell together: started by `accelerate launch`, for `hf_proxadam.study.launch`.

    python -m hf_proxadam.study.launched FOLDER THREADS CELL

CELL is the cell as JSON. All processes share the driver's pipe as their standard input, and end when it does.
"""

import json
import os
import sys
import traceback
from pathlib import Path

from hf_proxadam.study.worker import begin
from hf_proxadam.trainer.ending import leave

# A line of up to 4096 bytes is written to a pipe in one piece, and so never mixed with another process's.
MOST_OF_A_TRACEBACK = 3000


def main() -> None:
    """Train the cell; the first process saves its result."""
    answer = begin(lambda line: None)
    folder, threads, cell_as_json = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    try:
        import torch

        from hf_proxadam.study import store
        from hf_proxadam.study.cells import Cell
        from hf_proxadam.study.trial import run_cell

        torch.set_num_threads(threads)
        cell = Cell.from_dict(json.loads(cell_as_json))
        result = run_cell(cell, folder)
        if os.environ["RANK"] == "0":
            store.save_result(folder, result)
            answer(error=None)
    except Exception:
        answer(error=traceback.format_exc()[-MOST_OF_A_TRACEBACK:])
        sys.exit(1)
    leave()


if __name__ == "__main__":
    main()
