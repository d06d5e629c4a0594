"""The same script on one process, two, with accumulation, FSDP2 and ZeRO: one trajectory for every registered name.

The global batch is the same in all ways; ways_worker.py is the script. A way is also stopped in the middle of an epoch
and resumed in new processes.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from hf_proxadam import scales
from hf_proxadam.trainer.catalog import CATALOG

from .ways_worker import STEPS, STOP, WAYS, trainer

WORKER = Path(__file__).with_name("ways_worker.py")
Results = dict[str, dict[str, Any]]
DISTRIBUTED_TYPE = {"single": "NO", "accumulation": "NO", "ddp": "MULTI_CPU", "ddp_accumulation": "MULTI_CPU"}


def run(way: str, folder: Path) -> dict[str, Results]:
    """The results of a way: {"whole" or "resumed": {name: what the worker left}}."""
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, str(WORKER), way, str(folder), *CATALOG]
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output = process.communicate(timeout=400)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the ranks, too
            raise
    assert process.returncode == 0, output
    return {
        part: {name: torch.load(folder / name / f"{part}.pt", weights_only=True) for name in CATALOG}
        for part in ("whole", "resumed")
    }


@pytest.fixture(scope="module")
def single_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("single")


@pytest.fixture(scope="module")
def single(single_folder: Path) -> dict[str, Results]:
    return run("single", single_folder)


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[key] - b[key]).abs().max().item() for key in a)


def check(way: str, results: dict[str, Results], single: dict[str, Results], folder: Path, single_folder: Path) -> None:
    """The right optimizer ran in the right way, to the same parameters, unbroken and resumed."""
    for name, entry in CATALOG.items():
        whole, resumed, expected = results["whole"][name], results["resumed"][name], single["whole"][name]
        label = f"{name}, {way}"
        for ran in (whole["ran"], resumed["ran"]):
            assert ran["class"] == entry.cls.__name__, label
            assert ran["eps"] == entry.defaults.get("eps", 1e-8), label
            assert ran["processes"] == WAYS[way]["processes"], label
            assert ran["distributed_type"] == DISTRIBUTED_TYPE.get(way, "FSDP" if "fsdp" in way else "DEEPSPEED"), label
            assert ran["steps"] == [STEPS], label
            # Sharded ways keep half of the moments on each of two processes (and DeepSpeed's padding).
            share = ran["moments_here"] / expected["ran"]["moments_here"]
            assert share == 1 if way in DISTRIBUTED_TYPE else 0.5 <= share < 0.51, label
        assert largest_difference(whole["parameters"], expected["parameters"]) <= 1e-6, label
        assert largest_difference(resumed["parameters"], whole["parameters"]) == 0, f"{label}, resumed"
    if "zero" not in way:
        check_records(folder, single_folder)


def check_records(folder: Path, single: Path) -> None:
    """The same gradient scales in every way, unbroken and resumed."""
    for name in CATALOG:
        whole, resumed = (scales.load(folder / name / part / "scales").to_pandas() for part in ("whole", "stopped"))
        expected = scales.load(single / name / "whole" / "scales").to_pandas()
        assert sorted(whole["step"].unique()) == [5, 10, 15, 20], name
        pandas.testing.assert_frame_equal(resumed, whole)
        exactly = ["step", "epoch", "parameter", "quantity", "numel", "finite", "nonfinite", "learning_rate"]
        pandas.testing.assert_frame_equal(whole[exactly], expected[exactly])
        for quantity, rows in whole.groupby("quantity"):
            right = expected.loc[rows.index]
            # An update is a difference of two rounded weights: float32 keeps about 1e-4 of it here.
            tolerance = 1e-3 if quantity == "update" else 1e-5
            numpy.testing.assert_allclose(rows["rms"], right["rms"], rtol=tolerance, err_msg=f"{name}, {quantity}")
            moved = numpy.abs(numpy.stack(rows["histogram"]) - numpy.stack(right["histogram"])).sum()
            assert moved <= 0.02 * right["finite"].sum(), (name, quantity)


def test_on_one_process(single: dict[str, Results], single_folder: Path) -> None:
    check("single", single, single, single_folder, single_folder)
    # What follows would mean little if the training did little, or the same whatever the optimizer.
    trained = [single["whole"][name]["parameters"] for name in ("proxadam", "adam_l2", "adamw_atan2")]
    assert all(largest_difference(a, b) > 1e-4 for a in trained for b in trained if a is not b)


@pytest.mark.parametrize(
    "way",
    [
        "accumulation",
        "ddp",
        "fsdp2_sharded",
        *(pytest.param(way, marks=pytest.mark.slow) for way in ("ddp_accumulation", "fsdp2_full")),
    ],
)
def test_every_way_is_the_same(way: str, single: dict[str, Results], single_folder: Path, tmp_path: Path) -> None:
    check(way, run(way, tmp_path), single, tmp_path, single_folder)
    if way == "fsdp2_sharded":
        check_one_process_reads(tmp_path, single_folder)


def check_one_process_reads(sharded: Path, plain: Path) -> None:
    """A sharded checkpoint is torch.distributed.checkpoint's: one process without FSDP reads it, to the same state."""
    for name in CATALOG:
        checkpoint = Path(name) / "stopped" / f"checkpoint-{STOP}"
        used = trainer("single", name, sharded / name / "read")
        optimizer = used.create_optimizer()
        target = {"optimizer": get_optimizer_state_dict(used.model, optimizer)}
        dcp.load(target, checkpoint_id=sharded / checkpoint / "optimizer_0", no_dist=True)
        set_optimizer_state_dict(used.model, optimizer, target["optimizer"])
        expected = torch.load(plain / checkpoint / "optimizer.pt", weights_only=True)
        found = optimizer.state_dict()
        assert [g["lr"] for g in found["param_groups"]] == [g["lr"] for g in expected["param_groups"]]
        assert [g["initial_lr"] for g in found["param_groups"]] == [g["initial_lr"] for g in expected["param_groups"]]
        assert max(state["exp_avg"].abs().max() for state in expected["state"].values()) > 1e-3
        torch.testing.assert_close(found["state"], expected["state"], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed (extra: deepspeed)"
)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_zero(stage: int, single: dict[str, Results], single_folder: Path, tmp_path: Path) -> None:
    check(f"zero{stage}", run(f"zero{stage}", tmp_path), single, tmp_path, single_folder)
