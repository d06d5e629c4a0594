import errno

import pytest
import yaml

from hf_proxadam import atomic, cli, report
from hf_proxadam.study import RunnerError, driver
from hf_proxadam.study.driver import Outcome
from hf_proxadam.trainer.catalog import CATALOG
from tests.tasks.image_files import write_digits

STUDY = {
    "name": "tiny",
    "task": "digits",
    "optimizers": [{"name": "proxadam"}],
    "learning_rates": [1e-3],
    "weight_decays": [0.1],
    "seeds": [0, 1],
}


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


@pytest.fixture
def runs(monkeypatch):
    """What run_study and report.make were called with; nothing is trained."""
    calls = []

    def run_study(study, folder, workers, command, runner, address, mirror):
        calls.append(("run", study.name, str(folder), workers))
        calls_and_outcome.mirror = mirror
        calls_and_outcome.study, calls_and_outcome.runner = study, (runner, address)
        return runs_outcome[0]

    def make(folder):
        calls.append(("report", str(folder)))
        return folder / "report" / "README.md"

    runs_outcome = [Outcome(total=2, ran=2, failed=())]
    calls_and_outcome = type("Runs", (), {"calls": calls, "outcome": runs_outcome})
    monkeypatch.setattr(driver, "run_study", run_study)
    monkeypatch.setattr(report, "make", make)
    return calls_and_outcome


def test_list_names_every_registered_optimizer(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(CATALOG)
    assert all(entry.description in line for entry, line in zip(CATALOG.values(), lines[1:], strict=True))


def test_compare_runs_then_reports_and_prints_the_card(study_file, runs, capsys):
    assert cli.main(["compare", "tiny.yaml"]) == 0
    assert runs.calls == [("run", "tiny", "runs/tiny", None), ("report", "runs/tiny")]
    assert capsys.readouterr().out == "The card: runs/tiny/report/README.md\n"
    assert cli.main(["compare", "tiny.yaml", "--output_dir", "here", "--workers", "3"]) == 0
    assert runs.calls[2:] == [("run", "tiny", "here", 3), ("report", "here")]


def test_compare_hands_its_options_on(study_file, runs):
    assert cli.main(["compare", "tiny.yaml"]) == 0
    assert runs.runner == ("local", None)
    assert runs.study.training.processes_per_cell == 1
    options = ["--runner", "ray", "--address", "auto", "--processes_per_cell", "2"]
    assert cli.main(["compare", "tiny.yaml", *options]) == 0
    assert runs.runner == ("ray", "auto")
    assert runs.study.training.processes_per_cell == 2


def test_data_and_model_of_a_study_may_be_given_with_the_command(study_file, runs, tmp_path):
    images = {"dataset_name": "uoft-cs/cifar10", "model_name_or_path": "resnet20"}
    study_file.write_text(yaml.safe_dump({**STUDY, "task": "images", "model": images}))
    folder = str(write_digits(tmp_path / "images"))
    options = ["--dataset_path", folder, "--model_name_or_path", "resnet56"]
    assert cli.main(["compare", "tiny.yaml", *options]) == 0
    given = {key: runs.study.model[key] for key in ("dataset_name", "dataset_path", "model_name_or_path")}
    assert given == {"dataset_name": None, "dataset_path": folder, "model_name_or_path": "resnet56"}


def test_an_option_that_the_task_does_not_have_is_refused(study_file, runs, capsys):
    assert cli.main(["compare", "tiny.yaml", "--model_name_or_path", "x"]) == 2
    assert "model.model_name_or_path: there is no such key; known are: hidden_size" in capsys.readouterr().err
    assert runs.calls == []


def test_an_object_store_is_kept_in_step_with_the_folder_of_the_studys_name(study_file, runs, capsys):
    assert cli.main(["compare", "tiny.yaml", "--output_dir", "memory://bucket/study"]) == 0
    assert runs.calls == [("run", "tiny", "runs/tiny", None), ("report", "runs/tiny")]
    assert (runs.mirror.url, str(runs.mirror.folder)) == ("memory://bucket/study", "runs/tiny")
    assert "Its copy: memory://bucket/study/report/README.md" in capsys.readouterr().out
    assert cli.main(["compare", "tiny.yaml"]) == 0
    assert runs.mirror is None


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nope://bucket/study", "--output_dir is nope://bucket/study; it must be a folder, or a URL of fsspec's"),
        ("memory://key:secret@bucket", "The URL of --output_dir must not hold credentials"),
    ],
)
def test_a_url_that_can_not_be_an_output_folder_is_refused(url, sentence, study_file, runs, capsys):
    assert cli.main(["compare", "tiny.yaml", "--output_dir", url]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "secret" not in error
    assert len(error.splitlines()) == 1
    assert runs.calls == []


def test_a_full_disk_is_one_sentence(study_file, monkeypatch, capsys):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(atomic, "write_json", full)
    assert cli.main(["compare", "tiny.yaml"]) == 1
    error = capsys.readouterr().err
    assert error == "hf-proxadam: runs/tiny/study.json: No space left on device. Finished cells are kept.\n"


def test_dry_run_prints_the_cells_and_makes_nothing(study_file, runs, capsys):
    assert cli.main(["compare", "tiny.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("to run    proxadam, lr 0.001, decay 0.1, seed") == 2
    assert "2 cells, 0 finished, 2 to run." in out
    assert runs.calls == []
    assert [path.name for path in study_file.parent.iterdir()] == ["tiny.yaml"]


def test_failed_cells_make_the_exit_code_1_and_the_others_are_reported(study_file, runs, capsys):
    runs.outcome[0] = Outcome(total=2, ran=1, failed=("cell",))
    assert cli.main(["compare", "tiny.yaml"]) == 1
    assert runs.calls[-1][0] == "report"
    assert "1 of 2 cells failed for good" in capsys.readouterr().err
    runs.outcome[0] = Outcome(total=2, ran=0, failed=("cell", "cell"))
    assert cli.main(["compare", "tiny.yaml"]) == 1
    assert runs.calls[-1][0] == "run"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare", "nothing.yaml"], "The study file nothing.yaml can't be read"),
        (["compare", "bad.yaml"], "there is no optimizer 'proxadm'; did you mean 'proxadam'?"),
        (["compare", "tiny.yaml", "--output_dir", "tiny.yaml"], "The output folder tiny.yaml is a file"),
        (["compare", "tiny.yaml", "--workers", "0"], "workers is 0; it must be at least 1."),
        (["report", "nowhere"], "nowhere is not a study folder"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(study_file, capsys, arguments, sentence):
    bad = {**STUDY, "optimizers": [{"name": "proxadm"}]}
    study_file.with_name("bad.yaml").write_text(yaml.safe_dump(bad))
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("hf-proxadam: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_no_command_and_an_unknown_one_exit_with_2(capsys):
    for arguments in ([], ["compere"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2


def test_a_machine_that_runs_nothing_gets_a_sentence_and_exit_code_1(study_file, monkeypatch, capsys):
    def fail(*_, **__):
        raise RunnerError("No worker process can be started.")

    monkeypatch.setattr(driver, "run_study", fail)
    assert cli.main(["compare", "tiny.yaml"]) == 1
    assert capsys.readouterr().err == "hf-proxadam: No worker process can be started.\n"


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(study_file, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "run_study", interrupt)
    assert cli.main(["compare", "tiny.yaml"]) == 130
    assert "goes on from here" in capsys.readouterr().err


def test_the_command_on_record_has_no_path_of_this_machine(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/hf-proxadam", "compare", "a b.yaml"])
    assert cli._command() == ["hf-proxadam", "compare", "a b.yaml"]
