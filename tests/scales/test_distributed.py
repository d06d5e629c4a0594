"""One process, two with DDP, two with FSDP2 (sharded, and replicated): the same data give the same record."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pandas
import pytest

from hf_proxadam.scales import load

WORKER = Path(__file__).with_name("distributed_worker.py")


def run(way: str, world: int, folder: Path) -> pandas.DataFrame:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, str(WORKER), way, str(rank), str(world), str(folder)], env=environment)
        for rank in range(world)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * world
    finally:
        for process in processes:
            process.kill()
    return load(folder / "scales").to_pandas()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> pandas.DataFrame:
    return run("single", 1, tmp_path_factory.mktemp("single") / "run")


@pytest.mark.parametrize(
    "way", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2", pytest.param("hsdp", marks=pytest.mark.slow)]
)
def test_same_record(way: str, single: pandas.DataFrame, tmp_path: Path) -> None:
    table = run(way, 2, tmp_path / "run")
    exactly = [
        "step",
        "module",
        "parameter",
        "quantity",
        "numel",
        "finite",
        "nonfinite",
        "learning_rate",
        "sampled_share",
    ]
    pandas.testing.assert_frame_equal(table[exactly], single[exactly])
    assert len(table) == 2 * 6 * 3
    assert (single["clip_factor"] < 1).all()
    for column, tolerance in {"rms": 1e-4, "max": 1e-3, "clip_factor": 1e-4}.items():
        numpy.testing.assert_allclose(table[column], single[column], rtol=tolerance)
    weights = table["quantity"] == "weight"
    numpy.testing.assert_allclose(table["min_nonzero"][weights], single["min_nonzero"][weights], rtol=1e-2)
    for histogram, expected in zip(table["histogram"], single["histogram"], strict=True):
        assert sum(histogram) == sum(expected)
        # Rounding moves few entries over a power of two.
        assert numpy.abs(histogram - expected).sum() <= 0.05 * sum(expected) + 4
