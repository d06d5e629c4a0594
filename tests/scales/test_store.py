"""The files: readable by everybody, whole after any accident, of one run only."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet
import pytest
import torch

from hf_proxadam.scales import BINS, GradientScaleRecorder, load
from hf_proxadam.scales.store import SCHEMA, Store, parts


def train(folder: Path, steps: int, **options: Any) -> GradientScaleRecorder:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = GradientScaleRecorder(model, optimizer, folder, every=1, records_per_part=2, **options)
    while recorder.step < steps:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    recorder.close()
    return recorder


def steps_in(folder: Path) -> list[int]:
    table = load(folder).to_pandas()
    assert not table.duplicated(["step", "parameter", "quantity"]).any()
    return sorted(set(table["step"]))


def test_parts_and_their_schema(tmp_path: Path) -> None:
    train(tmp_path, 5)
    assert [path.name for path in parts(tmp_path)] == [f"part-{step:09d}.parquet" for step in (1, 3, 5)]
    assert os.listdir(tmp_path) == [path.name for path in tmp_path.iterdir()]
    table = load(tmp_path)
    assert table.num_rows == 5 * 2 * 3
    assert table.schema.equals(SCHEMA)
    assert table.schema.field("step").metadata[b"unit"] == b"optimizer steps"
    assert all(table.schema.field(name).metadata[b"description"] for name in table.schema.names)
    assert {len(histogram) for histogram in table["histogram"].to_pylist()} == {BINS}


def test_pandas_and_datasets_read_the_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    train(tmp_path / "scales", 5)
    frame = pandas.read_parquet(tmp_path / "scales")
    dataset = datasets.load_dataset("parquet", data_dir=str(tmp_path / "scales"), cache_dir=str(tmp_path / "cache"))
    for read in (frame, dataset["train"].to_pandas()):
        assert sorted(set(read["step"])) == [1, 2, 3, 4, 5]
        assert len(read) == 30


def test_resume_replaces_the_steps_that_are_run_again(tmp_path: Path) -> None:
    first = train(tmp_path, 6)
    before = load(tmp_path).to_pandas()
    # A part holds the steps 3 and 4, so it is cut in two.
    resumed = train(tmp_path, 9, resume={"run": first.run, "step": 3})
    assert resumed.run == first.run
    assert steps_in(tmp_path) == list(range(1, 10))
    after = load(tmp_path).to_pandas()
    pandas.testing.assert_frame_equal(before[before["step"] <= 3], after[after["step"] <= 3])
    assert not before[before["step"] == 4]["rms"].equals(after[after["step"] == 4]["rms"])


def test_a_resume_that_is_killed_leaves_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(tmp_path, 8)
    unlink = Path.unlink

    def killed(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name.startswith("part-") and len(parts(tmp_path)) < 4:
            raise KeyboardInterrupt
        unlink(path, *args, **kwargs)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 9, resume={"run": first.run, "step": 2})
    assert steps_in(tmp_path) == list(range(1, 7))


def test_state_dict_writes_what_it_vouches_for(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = GradientScaleRecorder(model, optimizer, tmp_path, every=1)
    optimizer.step()
    assert parts(tmp_path) == []
    assert recorder.state_dict() == {"run": recorder.run, "step": 1}
    assert steps_in(tmp_path) == [1]


def test_another_run_is_refused_or_replaced(tmp_path: Path) -> None:
    train(tmp_path, 3)
    with pytest.raises(ValueError, match=r"holds the gradient scales of another run; give"):
        train(tmp_path, 3)
    with pytest.raises(ValueError, match="another run"):
        train(tmp_path, 3, resume={"run": "other", "step": 2})
    assert steps_in(tmp_path) == [1, 2, 3]
    train(tmp_path, 1, replace=True)
    assert steps_in(tmp_path) == [1]


def test_two_runs_at_once_do_not_mix(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {name: [None] for name in SCHEMA.names}
    columns["step"] = [1]
    stores = [Store(tmp_path, run) for run in ("one", "other")]
    for store in stores:
        store.begin(0)
    stores[0].write(columns)
    with pytest.raises(FileExistsError, match="another run writes"):
        stores[1].write(columns)
    columns["step"] = [2]
    stores[1].write(columns)
    with pytest.raises(ValueError, match="several runs"):
        load(tmp_path)


def test_folder_without_records_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"has no gradient scales"):
            load(folder)


def test_a_file_that_is_no_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "part-000000001.parquet").write_text("no Parquet")
    for use in (lambda: load(tmp_path), lambda: train(tmp_path, 1)):
        with pytest.raises(ValueError, match=r"part-000000001.parquet' can't be read"):
            use()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"can't be written to .*file/scales"):
        train(tmp_path / "file" / "scales", 1)


def test_full_disk_does_not_stop_the_training(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import resource, signal, sys, warnings
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_store import train
        # Files may not grow past 100 bytes: the write fails as it does on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            recorder = train(Path({str(tmp_path)!r}), 7)
        said = [w for w in caught if "training goes on" in str(w.message)]
        print(recorder.step, recorder.lost_records, len(said))
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["7", "7", "1"], done.stderr
    assert "7 records of gradient scales were lost" in done.stderr
    assert os.listdir(tmp_path) == []


def test_torn_leftovers_are_not_read(tmp_path: Path) -> None:
    train(tmp_path, 2)
    whole = (tmp_path / "part-000000001.parquet").read_bytes()
    (tmp_path / ".part-000000003.parquet.1.tmp").write_bytes(whole[: len(whole) // 2])
    assert steps_in(tmp_path) == [1, 2]
    assert len(pandas.read_parquet(tmp_path)) == 12
    assert pyarrow.parquet.ParquetFile(tmp_path / "part-000000001.parquet").metadata.num_rows == 12
    train(tmp_path, 1, replace=True)
    assert os.listdir(tmp_path) == ["part-000000001.parquet"]
