"""The runner, tested by breaking it."""

import contextlib
import io
import os
import signal
import sys
from pathlib import Path

import pytest
import yaml

from hf_proxadam.study import RunnerError, driver, store
from hf_proxadam.study.cells import grid
from hf_proxadam.study.driver import describe, run_study
from hf_proxadam.study.local import LocalRunner
from hf_proxadam.study.lock import study_lock
from hf_proxadam.study.runner import Event
from tests.study.breaking import Driver, fake_result, results_of, wait_until


@pytest.fixture
def study_file(tiny, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return path


def break_after(driver, folder, count, kill):
    """Kill when `count` cells are finished and workers are busy; see to it that the workers end, too."""
    worker = "hf_proxadam.study.worker"
    wait_until(
        lambda: (driver.others(worker) and len(results_of(folder)) >= count) or driver.process.poll() is not None
    )
    assert driver.others(worker), "it was over before it could be interrupted"
    kill(driver.process)
    code = driver.process.wait(timeout=20)
    wait_until(driver.is_alone)
    return code


def test_killed_and_interrupted_equals_undisturbed(study_file, tiny, make_study, tmp_path):
    study = make_study(tiny)
    run_study(study, tmp_path / "whole", workers=1, stream=io.StringIO())
    whole = results_of(tmp_path / "whole")
    assert len(whole) == 4

    folder = tmp_path / "broken"
    code = break_after(Driver(study_file, folder, "--workers", "1"), folder, 1, lambda process: process.kill())
    assert code == -signal.SIGKILL
    killed = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/result.json")}
    assert 1 <= len(killed) < 4, "the kill came too late to show anything"
    code = break_after(
        Driver(study_file, folder, "--workers", "1"),
        folder,
        len(killed),
        lambda process: os.killpg(process.pid, signal.SIGINT),
    )
    assert code == 130
    outcome = run_study(study, folder, workers=2, stream=io.StringIO())
    assert results_of(folder) == whole
    assert outcome.ran <= 4 - len(killed)
    assert {path: path.stat().st_mtime_ns for path in killed} == killed, "a finished cell was run again"


def test_a_finished_study_starts_nothing_and_changes_nothing(tiny, make_study, tmp_path, monkeypatch):
    study = make_study(tiny)
    for cell in grid(study):
        store.save_result(tmp_path, fake_result(cell))
    run_study(study, tmp_path, stream=io.StringIO(), command=["first"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}

    def refuse(*_):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(driver, "LocalRunner", refuse)
    outcome = run_study(study, tmp_path, stream=io.StringIO(), command=["second"])
    assert (outcome.total, outcome.ran, outcome.failed) == (4, 0, ())
    assert {path: path.read_bytes() for path in before} == before
    assert "4 cells, 4 finished, 0 to run." in describe(study, tmp_path)


def test_dry_run_estimates_the_time_from_finished_cells(tiny, make_study, tmp_path):
    study = make_study(tiny)
    cells = grid(study)
    assert "About" not in describe(study, tmp_path)
    store.save_result(tmp_path, fake_result(cells[0], seconds=10.0))
    text = describe(study, tmp_path, workers=2)
    assert text.count("finished  ") == 1
    assert text.count("to run  ") == 3
    assert "About 15 s with 2 workers" in text


def test_a_killed_worker_and_a_failing_cell_are_tried_again_a_stated_number_of_times(tiny, make_study, tmp_path):
    good = grid(make_study(tiny))[:2]
    tiny["model"]["patch_size"] = 8
    bad = grid(make_study(tiny))[0]
    bad.model["patch_size"] = 3  # refused by the task, in the worker
    with study_lock(tmp_path) as lock:
        runner = LocalRunner(tmp_path, workers=1, threads=1, retries=1, lock=lock)
        events = []
        for event in runner.run([good[0], bad, good[1]]):
            if event.kind == "started" and not events:
                (worker,) = runner._pool.values()
                os.kill(worker.process.pid, signal.SIGKILL)
            if event.kind != "tick":
                events.append((event.kind, event.cell, event.error))
    kinds = [(kind, cell.hash) for kind, cell, _ in events if kind != "started"]
    assert kinds == [
        ("retry", good[0].hash),
        ("retry", bad.hash),
        ("done", good[1].hash),
        ("done", good[0].hash),
        ("failed", bad.hash),
    ]
    assert f"died with exit code {-signal.SIGKILL}" in events[1][2]
    assert "patch_size is 3; it must divide 8" in events[-1][2]
    assert set(results_of(tmp_path)) == {cell.hash for cell in good}


def test_a_worker_ends_in_the_middle_of_a_cell_when_its_driver_does(tiny, make_study, tmp_path):
    tiny["training"]["max_steps"] = 10**6
    (cell, *_) = grid(make_study(tiny))
    with study_lock(tmp_path) as lock:
        runner = LocalRunner(tmp_path, workers=1, threads=1, retries=0, lock=lock)
        with contextlib.closing(runner.run([cell])) as events:
            assert any(event.kind == "started" for event in events)
            (worker,) = runner._pool.values()
            # It trains: the first records are there.
            wait_until(lambda: any(store.scales_folder(tmp_path, cell.hash).glob("*.parquet")))
            held = [os.readlink(path) for path in Path(f"/proc/{worker.process.pid}/fd").iterdir()]
            assert str(tmp_path / ".lock") in held, "another driver could begin while this worker still writes"
            worker.process.stdin.close()  # as the kernel does when the driver dies
            assert worker.process.wait(timeout=20) == 0
    assert results_of(tmp_path) == {}


def test_failed_cells_keep_their_error_and_the_others_are_counted(tiny, make_study, tmp_path, monkeypatch):
    class Runner:
        at_once = 1

        def __init__(self, *_):
            pass

        def run(self, cells):
            for i, cell in enumerate(cells):
                yield Event(kind="started", cell=cell)
                if i == 1:
                    yield Event(kind="failed", cell=cell, error="Traceback\nOSError: gone")
                else:
                    store.save_result(tmp_path, fake_result(cell))
                    yield Event(kind="done", cell=cell)

    monkeypatch.setattr(driver, "LocalRunner", Runner)
    study, stream = make_study(tiny), io.StringIO()
    outcome = run_study(study, tmp_path, stream=stream)
    assert (outcome.ran, outcome.failed) == (3, (grid(study)[1],))
    assert store.error_file(tmp_path, outcome.failed[0].hash).read_text() == "Traceback\nOSError: gone"
    assert "failed for good. OSError: gone" in stream.getvalue()
    assert "3 of 4 cells done; 0 running; 1 failed" in stream.getvalue()


def test_workers_that_cannot_start_are_not_started_forever(tiny, make_study, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunnerError, match="No worker process can be started"):
        run_study(make_study(tiny), tmp_path, workers=2, stream=io.StringIO())


def test_two_drivers_do_not_share_a_folder(tmp_path):
    refused = pytest.raises(ValueError, match=rf"Another run \(process {os.getpid()}\) works on")
    with study_lock(tmp_path), refused, study_lock(tmp_path, patience=0.2):
        pass
    with study_lock(tmp_path, patience=0.2):
        pass
