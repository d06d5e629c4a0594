"""A study under constant fire: whatever is killed, and however often, its report is that of an undisturbed run."""

import importlib.util
import io
import random
import re
import signal
import time

import pandas as pd
import pytest
import yaml

from hf_proxadam import report
from hf_proxadam.study.driver import run_study
from tests.study.breaking import Driver, results_of, wait_until

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs the package ray: pip install 'hf_proxadam[ray]'")
# Everything that a runner starts, by what stands in its command line.
TRAINS = {"local": ["hf_proxadam.study.worker"], "ray": ["ray::_train", "ray::IDLE"]}
ENDS_WITHIN = 20


@pytest.fixture
def study_file(tiny, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=needs_ray)])
def test_24_cells_under_kill_9_equal_an_undisturbed_run(runner, tiny, make_study, tmp_path):
    tiny |= {"learning_rates": [1e-3, 3e-3, 1e-2], "weight_decays": [0.01, 0.1], "retries": 100}
    path, folder = tmp_path / "tiny.yaml", tmp_path / "broken"
    path.write_text(yaml.safe_dump(tiny))
    rng = random.Random(0)
    first_seen, killed = {}, {"driver": 0, "worker": 0}

    def look():
        for result in folder.glob("cells/*/result.json"):
            stat = result.stat()
            first_seen.setdefault(result, (stat.st_ino, stat.st_mtime_ns))
        return len(first_seen)

    def has_more_than(count, driver):
        return lambda: look() > count or driver.process.poll() is not None

    options = ["--workers", "2", "--runner", runner]
    driver = Driver(path, folder, *options)
    while True:
        wait_until(has_more_than(look(), driver))
        time.sleep(rng.random())
        if driver.process.poll() is not None:
            break
        victims = driver.others(*TRAINS[runner])
        if victims and killed["worker"] < killed["driver"]:
            rng.choice(victims).kill()
            killed["worker"] += 1
        else:
            driver.process.kill()
            killed["driver"] += 1
            driver.process.wait()
            wait_until(driver.is_alone, ENDS_WITHIN)
            driver = Driver(path, folder, *options)
    assert driver.process.returncode == 0, driver.text()
    assert killed["driver"] >= 3, killed
    assert killed["worker"] >= 3, killed
    wait_until(driver.is_alone, ENDS_WITHIN)

    whole = tmp_path / "whole"
    run_study(make_study(tiny), whole, workers=2, stream=io.StringIO())
    report.make(whole)
    assert len(results_of(folder)) == 24
    assert results_of(folder) == results_of(whole)
    for result, (inode, written) in first_seen.items():
        assert (result.stat().st_ino, result.stat().st_mtime_ns) == (inode, written), "a finished cell was run again"
    assert_same_report(folder / "report", whole / "report")


def assert_same_report(one, other):
    """Everything but times and the command is the same."""
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert names == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    for name in names:
        if name.suffix == ".png":
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = (pd.read_parquet(path / "runs.parquet") for path in (one, other))
    timing = ["train_seconds", "samples_per_second"]
    pd.testing.assert_frame_equal(first.drop(columns=timing), second.drop(columns=timing))
    first, second = (pd.read_parquet(path / "scales.parquet") for path in (one, other))
    pd.testing.assert_frame_equal(first, second)
    cards = [(path / "README.md").read_text() for path in (one, other)]
    cards = [re.sub(r"(?s)The command:\n\n```.*?```\n\n|Training took .*", "", card) for card in cards]
    assert cards[0] == cards[1]


@needs_ray
@pytest.mark.slow
def test_ray_gives_the_same_results_and_ctrl_c_ends_it_within_seconds(study_file, tiny, make_study, tmp_path):
    run_study(make_study(tiny), tmp_path / "whole", workers=1, stream=io.StringIO())
    folder = tmp_path / "ray"
    driver = Driver(study_file, folder, "--runner", "ray", "--workers", "1")
    wait_until(lambda: results_of(folder) or driver.process.poll() is not None)
    driver.process.send_signal(signal.SIGINT)
    assert driver.process.wait(timeout=ENDS_WITHIN) == 130, driver.text()
    wait_until(driver.is_alone, ENDS_WITHIN)
    kept = results_of(folder)
    assert 1 <= len(kept) < 4
    assert "Traceback" not in driver.text()
    driver = Driver(study_file, folder, "--runner", "ray", "--workers", "1")
    assert driver.process.wait(timeout=300) == 0, driver.text()
    assert results_of(folder) == results_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_cell_on_two_processes_survives_them_and_leaves_none(study_file, tiny, make_study, tmp_path):
    folder = tmp_path / "two"
    options = ["--processes_per_cell", "2", "--workers", "1"]
    launched = "hf_proxadam.study.launched"
    driver = Driver(study_file, folder, *options)
    # A kill of one of the two that train, of the launcher while they do, and of the driver.
    wait_until(lambda: len(driver.others(f"-m {launched}")) == 3)
    max(driver.others(f"-m {launched}"), key=lambda process: process.pid).kill()
    wait_until(lambda: "trying again" in driver.text())
    wait_until(lambda: len(driver.others(f"-m {launched}")) == 3)
    driver.others("accelerate.commands.launch")[0].kill()
    wait_until(lambda: results_of(folder))
    wait_until(lambda: len(driver.others(f"-m {launched}")) == 3)
    driver.process.kill()
    driver.process.wait()
    wait_until(driver.is_alone, ENDS_WITHIN)
    driver = Driver(study_file, folder, *options)
    wait_until(lambda: len(driver.others(f"-m {launched}")) == 3)
    driver.process.send_signal(signal.SIGINT)
    assert driver.process.wait(timeout=ENDS_WITHIN) == 130, driver.text()
    wait_until(driver.is_alone, ENDS_WITHIN)
    driver = Driver(study_file, folder, *options)
    assert driver.process.wait(timeout=300) == 0, driver.text()
    wait_until(driver.is_alone, ENDS_WITHIN)

    # Two processes with half a batch each see what one sees with the whole batch, and add up in another order.
    tiny["training"]["per_device_train_batch_size"] = 32
    run_study(make_study(tiny), tmp_path / "one", workers=1, stream=io.StringIO())
    one, two = (curves_of(tmp_path / name) for name in ("one", "two"))
    assert two.keys() == one.keys()
    for cell in one:
        assert two[cell] == pytest.approx(one[cell], rel=1e-5)


def curves_of(folder):
    """Training losses, and accuracies on test data, by optimizer and seed."""
    return {
        (result["cell"]["optimizer"], result["cell"]["seed"]): [
            *(point["train_loss"] for point in result["curve"] if "train_loss" in point),
            result["test"]["accuracy"],
        ]
        for result in results_of(folder).values()
    }
