"""What tests need that break a running study: to find its processes, to kill them, and to see what is left."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE = 300


class Driver:
    """`hf-proxadam compare` in a process of its own, and every process that it starts, wherever it is in the tree."""

    def __init__(self, study_file, folder, *options):
        # A mark in the environment, which is inherited by everything, also by what was orphaned or changed its session.
        self.mark = f"HF_PROXADAM_TEST={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        self.log = folder.parent / f"driver-{value}.log"
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C goes to a whole process group, and must not reach the tests.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hf_proxadam.cli", "compare", study_file, "--output_dir", folder, *options],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", name: value},
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Whoever runs the tests in the background has it ignored, and that is inherited.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def others(self, *names):
        """Its processes but itself; with `names` those in whose command line one of them stands."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = Path(f"/proc/{process.pid}/environ").read_bytes()
                command = " ".join(process.cmdline())
                if process.status() == psutil.STATUS_ZOMBIE or process.pid == self.process.pid:
                    continue
            except (OSError, psutil.Error):
                continue
            if self.mark.encode() in environment and (not names or any(name in command for name in names)):
                found.append(process)
        return found

    def is_alone(self):
        return not self.others()

    def text(self):
        return self.log.read_text(errors="replace")


def results_of(folder):
    """Result by cell hash, without what differs between any two runs."""
    results = {}
    for path in Path(folder, "cells").glob("*/result.json"):
        result = json.loads(path.read_text())
        del result["timing"]
        results[path.parent.name] = result
    return results


def wait_until(condition, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def fake_result(cell, seconds=1.0):
    """A finished cell's result, without any training."""
    return {
        "hash": cell.hash,
        "cell": cell.point,
        "status": "finished",
        "validation": {"accuracy": 0.5, "loss": 1.0},
        "test": {"accuracy": 0.5, "loss": 1.0},
        "curve": [],
        "optimizer": {"class": "A", "defaults": {}},
        "timing": {"train_seconds": seconds, "samples_per_second": 1.0},
    }
