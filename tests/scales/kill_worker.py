"""Trains, is killed at a random moment, resumes from its checkpoint, again and again. Arguments: folder, kills, seed.

torch is imported once: each attempt is a fork. Prints a line of JSON per attempt: what was found after the kill.
"""

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

import torch

from hf_proxadam.atomic import replacing
from hf_proxadam.scales import GradientScaleRecorder, load
from hf_proxadam.scales.store import parts

RECORDS_PER_PART = 5
STEPS_PER_CHECKPOINT = 37


def train(folder: Path, progress: mmap.mmap, last_step: int | None = None) -> None:
    checkpoint = folder / "checkpoint.pt"
    state = torch.load(checkpoint) if checkpoint.exists() else None
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    recorder = GradientScaleRecorder(
        model,
        optimizer,
        folder / "scales",
        every=1,
        records_per_part=RECORDS_PER_PART,
        resume=None if state is None else state["scales"],
        # Killed before the first checkpoint there is nothing to go on with.
        replace=state is None,
    )
    while recorder.step != last_step:
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        progress[:8] = struct.pack("q", recorder.step)
        if recorder.step % STEPS_PER_CHECKPOINT == 0:
            scales = recorder.state_dict()
            with replacing(checkpoint) as aside:
                torch.save({"scales": scales}, aside)


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    # What is loaded at first use is loaded before the forks.
    train(folder / "warm-up", mmap.mmap(-1, 8), last_step=2 * STEPS_PER_CHECKPOINT)
    moments = random.Random(seed)
    for _ in range(kills):
        progress = mmap.mmap(-1, 8)
        child = os.fork()
        if child == 0:
            train(folder, progress)
        time.sleep(moments.uniform(0.05, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done = struct.unpack("q", progress[:8])[0]
        steps, twice = [], False
        if parts(folder / "scales"):
            table = load(folder / "scales").to_pandas()
            steps = sorted(set(table["step"].tolist()))
            twice = bool(table.duplicated(["step", "parameter", "quantity"]).any())
        print(json.dumps({"done": done, "steps": len(steps), "last": max(steps, default=0), "twice": twice}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
