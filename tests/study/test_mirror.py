"""A study folder and its copy in an object store (fsspec's, in memory)."""

import json
import re

import fsspec
import pytest

from hf_proxadam import scales
from hf_proxadam.study import RunnerError, store
from hf_proxadam.study.cells import grid
from hf_proxadam.study.driver import describe, run_study
from hf_proxadam.study.mirror import Mirror

URL = "memory://bucket/study"


@pytest.fixture
def there():
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


@pytest.fixture
def study(tiny, make_study):
    return make_study({**tiny, "seeds": [0]})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the study's two cells in it, trained once for all tests here."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def folder(study, finished):
    run_study(study, finished, 1)
    return finished


def test_another_machine_finds_what_was_finished(study, folder, there, tmp_path):
    run_study(study, folder, 1, mirror=Mirror(URL, folder))
    elsewhere = tmp_path / "elsewhere"
    assert "2 cells, 2 finished, 0 to run." in describe(study, elsewhere, mirror=Mirror(URL, elsewhere))
    assert run_study(study, elsewhere, 1, mirror=Mirror(f"{URL}/", elsewhere)).ran == 0
    assert store.load_runs(elsewhere).equals(store.load_runs(folder))
    for cell in grid(study):
        one, other = (scales.load(store.scales_folder(place, cell.hash)) for place in (folder, elsewhere))
        assert one.equals(other)
    assert json.loads(there.cat_file("/bucket/study/study.json"))["cells"] == [cell.hash for cell in grid(study)]


def test_each_cell_is_sent_when_it_is_done_and_the_report_at_the_end(study, there, tmp_path, monkeypatch):
    mirror = Mirror(URL, tmp_path)
    at_the_end = []
    send = Mirror.send
    monkeypatch.setattr(Mirror, "send", lambda self, hashes: (at_the_end.extend(self._finished()), send(self, hashes)))
    run_study(study, tmp_path, 1, mirror=mirror)
    assert sorted(at_the_end) == sorted(cell.hash for cell in grid(study))
    (tmp_path / "report" / "data").mkdir(parents=True)
    (tmp_path / "report" / "data" / "runs.parquet").write_bytes(b"x")
    (tmp_path / "report" / ".README.md.1.tmp").write_bytes(b"torn")
    mirror.send_report()
    assert there.find("/bucket/study/report") == ["/bucket/study/report/data/runs.parquet"]


def test_what_a_killed_sender_left_is_no_finished_cell_and_is_replaced(study, folder, there, tmp_path):
    killed = grid(study)[0].hash
    there.pipe_file(f"/bucket/study/cells/{killed}/scales/old.parquet", b"cut off")
    mirror = Mirror(URL, tmp_path)
    mirror.fetch([killed])
    assert not store.cell_folder(tmp_path, killed).exists()
    Mirror(URL, folder).send([killed])
    assert not there.exists(f"/bucket/study/cells/{killed}/scales/old.parquet")
    mirror.fetch([killed])
    assert store.load_result(tmp_path, killed) == store.load_result(folder, killed)


def test_without_a_network_all_is_kept_and_sent_the_next_time(study, folder, there, monkeypatch):
    put_file = type(there).put_file

    def broken(*_, **__):
        raise ConnectionError("no route to the host\nand so on")

    def results_only(files, local, path, **options):
        return put_file(files, local, path, **options) if path.endswith("result.json") else broken()

    def results_there():
        return [path for path in there.find("/bucket/study") if path.endswith("/result.json")]

    with monkeypatch.context() as patched:
        patched.setattr(type(there), "put_file", results_only)
        sentence = r"can't be written to; all results are in .* \(no route to the host\)\.$"
        with pytest.raises(RunnerError, match=sentence):
            run_study(study, folder, 1, mirror=Mirror(URL, folder))
        assert results_there() == [], "a result is sent last: what has one is whole"
        patched.setattr(type(there), "find", broken)
        with pytest.raises(RunnerError, match=r"memory://bucket/study can't be read \(no route to the host\)\.$"):
            run_study(study, folder, 1, mirror=Mirror(URL, folder))
    assert run_study(study, folder, 1, mirror=Mirror(URL, folder)).ran == 0
    assert len(results_there()) == 2


def test_a_damaged_result_is_named_and_not_kept(study, there, tmp_path):
    damaged = grid(study)[0].hash
    there.pipe_file(f"/bucket/study/cells/{damaged}/result.json", b"{")
    with pytest.raises(ValueError, match=f"{URL}/cells/{damaged} is damaged, or of another version: remove it there"):
        Mirror(URL, tmp_path).fetch([damaged])
    assert not store.result_file(tmp_path, damaged).exists()


@pytest.mark.parametrize(
    ("url", "library"), [("gs://b", "gcsfs"), ("abfs://box@account.dfs.core.windows.net/study", "adlfs")]
)
def test_a_store_whose_library_is_missing_says_which(url, library, tmp_path):
    sentence = rf"--output_dir is {re.escape(url)}; it must be a folder, or a URL of fsspec's \(.*{library}"
    with pytest.raises(ValueError, match=sentence):
        Mirror(url, tmp_path)
