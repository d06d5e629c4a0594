"""kill -9 at random moments: the files always load, at most one part is lost, no step stands twice after resuming."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECORDS_PER_PART = 5  # as in kill_worker.py


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill(kills: int, tmp_path: Path) -> None:
    worker = Path(__file__).with_name("kill_worker.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(worker), str(tmp_path), str(kills), "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    attempts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(attempts) == kills
    assert max(attempt["last"] for attempt in attempts) > RECORDS_PER_PART
    for attempt in attempts:
        assert not attempt["twice"]
        assert attempt["steps"] == attempt["last"], "a step in between is missing"
        # The records of one part, and the one that was being made.
        assert attempt["done"] - attempt["last"] <= RECORDS_PER_PART + 1
