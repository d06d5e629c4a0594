"""What can be wrong with a folder, a disk or an option is told in one sentence, and nothing is lost."""

import errno
import io
import json
import sys

import pytest

from hf_proxadam.study import RunnerError, driver, store
from hf_proxadam.study.cells import grid
from hf_proxadam.study.driver import run_study
from hf_proxadam.study.runner import Queue
from tests.study.breaking import fake_result


@pytest.fixture
def folder(tiny, make_study, tmp_path, monkeypatch):
    """A study of four cells, three of them finished; running the fourth would be a mistake."""
    study = make_study(tiny)
    for cell in grid(study)[:3]:
        store.save_result(tmp_path, fake_result(cell))
    store.save_study(tmp_path, study.as_dict(), [cell.hash for cell in grid(study)], ["first"])

    def refuse(*_):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(driver, "LocalRunner", refuse)
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def refused(study, folder, sentence):
    before = contents(folder)
    with pytest.raises(ValueError, match=sentence) as caught:
        run_study(study, folder, stream=io.StringIO())
    assert contents(folder) == before, "something was lost"
    assert len(str(caught.value).splitlines()) == 1


def test_a_torn_result(tiny, make_study, folder):
    path = store.result_file(folder, grid(make_study(tiny))[1].hash)
    path.write_bytes(path.read_bytes()[:40])
    refused(make_study(tiny), folder, r"result\.json can't be read .*: delete the file and run the study again")


def test_a_result_of_another_version(tiny, make_study, folder):
    path = store.result_file(folder, grid(make_study(tiny))[1].hash)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 7}))
    refused(
        make_study(tiny), folder, "has schema version 7, this hf_proxadam reads version 1: use another output folder"
    )


def test_a_study_folder_of_another_version_with_cells_to_run(tiny, make_study, folder):
    path = store.study_file(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 7}))
    refused(make_study(tiny), folder, r"study\.json has schema version 7")


def test_a_full_disk_ends_the_study_at_once(tiny, make_study, tmp_path):
    cell, *_ = grid(make_study(tiny))
    queue = Queue([cell], 5, tmp_path)
    error = f"Traceback\nOSError: [Errno {errno.ENOSPC}] No space left on device: 'x'"
    with pytest.raises(RunnerError, match="is full: make room and run the same command again; finished cells are kept"):
        queue.finish(cell, error)


def test_a_cell_whose_process_died_just_after_it_had_saved_its_result_is_done(tiny, make_study, tmp_path):
    cell, other, *_ = grid(make_study(tiny))
    store.save_result(tmp_path, fake_result(cell))
    queue = Queue([], 1, tmp_path)
    assert queue.finish(cell, "it died").kind == "done"
    assert [queue.finish(other, "it died").kind for _ in range(2)] == ["retry", "failed"]
    assert list(queue.waiting) == [other]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"runner": "rey"}, "runner is 'rey'; did you mean 'ray'"),
        ({"address": "auto"}, "address is 'auto', but the runner is local"),
    ],
)
def test_options_of_a_runner_that_cannot_be(options, sentence, tiny, make_study, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        run_study(make_study(tiny), tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_several_processes_per_cell_need_as_many_gpus_and_are_not_for_ray(tiny, make_study, tmp_path, monkeypatch):
    tiny["training"] |= {"processes_per_cell": 3, "use_cpu": False}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="processes_per_cell is 3, but there are 2 GPUs"):
        run_study(make_study(tiny), tmp_path)
    with pytest.raises(ValueError, match="processes_per_cell is 3; with the runner ray it must be 1"):
        run_study(make_study(tiny), tmp_path, runner="ray")


def test_ray_is_named_where_it_is_missing(tiny, make_study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunnerError, match=r"needs the package ray: pip install 'hf_proxadam\[ray\]'"):
        run_study(make_study(tiny), tmp_path, runner="ray")
