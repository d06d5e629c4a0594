"""What is published of a folder and what is not, and that nothing tells of the machine."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from safetensors.numpy import save_file

from hf_proxadam import cli, report
from hf_proxadam.report import checks, leaks, publication
from hf_proxadam.report.cleaning import without_paths
from hf_proxadam.study import environment, run_record, store

from .conftest import write_study
from .model_folder import run_with, write_model
from .test_text import ANY


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_model(tmp_path / "model")
    (folder / "scales" / "part-000000010.parquet").unlink()  # figures take seconds
    report.make(folder)
    return folder


def paths(contents: publication.Publication) -> list[str]:
    return [file.path for file in contents.files]


def test_a_study_is_found_from_its_folder_and_from_its_report(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", seeds=(0,), scales=False)
    report.make(folder)
    for place in (folder, folder / "report"):
        contents = publication.collect(place)
        assert (contents.kind, contents.repo_type, contents.root) == ("study", "dataset", folder / "report")
        assert sorted(paths(contents)) == [
            *("README.md", "curves.parquet", "figures/learning_curves.png", "figures/test_error.png"),
            *("runs.csv", "runs.parquet", "study.json"),
        ]
        assert contents.left_out == ()


def test_pickles_checkpoints_and_strangers_stay(model: Path) -> None:
    for name in ("a.pt", "b.PKL", "c.pickle", "d.ckpt", "e.bin", ".env", "secrets.json", "scales/part-1.pkl"):
        (model / name).write_text("x")
    (model / "runs" / "Nov23_host").mkdir(parents=True)
    contents = publication.collect(model)
    left_out = dict(contents.left_out)
    assert not set(paths(contents)) & left_out.keys()
    assert {"README.md", "model.safetensors", "run.json", "tokenizer.json"} <= set(paths(contents))
    for name in ("a.pt", "b.PKL", "c.pickle", "d.ckpt", "e.bin", "training_args.bin", "scales/part-1.pkl"):
        assert "pickle" in left_out[name]
    assert left_out["checkpoint-10/"] == "a checkpoint"
    assert left_out.keys() >= {".env", "secrets.json", "runs/", "notes.md"}


def test_links_out_of_the_folder_are_refused_and_those_inside_are_not(model: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    (model / "generation_config.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(ValueError, match="symbolic link out of its folder"):
        publication.collect(model)
    (model / "generation_config.json").unlink()
    (model / "generation_config.json").symlink_to(model / "config.json")
    assert "generation_config.json" in paths(publication.collect(model))
    (model / "scales").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "part-1.parquet").write_text("x")
    (model / "scales").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="symbolic link out of its folder"):
        publication.collect(model)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no folder"):
        publication.collect(tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").write_text("x")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="pickled weights are never published"):
        publication.collect(tmp_path)


def test_digests_are_gits_and_lfss(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello\n")
    for source in (tmp_path / "file", b"hello\n"):
        file = publication.File(path="file", source=source)
        assert file.git_sha1 == "ce013625030ba8dba906f756967f9e9ca394464a"
        assert file.sha256 == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        assert file.size == 6


def test_paths_are_taken_out_of_what_is_sent_and_tokens_are_not_touched(model: Path) -> None:
    tokenizer = {"pad_token": "/", "name_or_path": "/home/ada/bert", "tokenizer_file": "C:\\Users\\ada\\t.json"}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    sent = {file.path: file.read() for file in publication.collect(model).files}
    assert json.loads(sent["tokenizer_config.json"]) == {
        "pad_token": "/",
        "name_or_path": "bert",
        "tokenizer_file": "t.json",
    }
    assert json.loads(sent["trainer_state.json"])["best_model_checkpoint"] == "checkpoint-10"
    assert json.loads(sent["run.json"])["command"][1:] == ["--model_name_or_path=bert", "--dataset_path", "glue"]
    assert sent["tokenizer.json"] == (model / "tokenizer.json").read_bytes()


@given(string=ANY)
@settings(max_examples=200, deadline=None)
def test_taking_paths_out_twice_is_as_once(string: str) -> None:
    """A card is made from cleaned data, and verified from what was published: cleaned once more."""
    for place in (string, f"/home/ada/{string}", f"--x=/home/ada {string}", f"{string} '/home/ada/{string}"):
        once = without_paths(place)
        assert without_paths(once) == once
        assert "/home/ada" not in once


TOKEN = "hf_" + "a1B2" * 9


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("run.json", TOKEN, "an access token"),
        ("run.json", "from the saved one: 0123-saved-token", "an access token"),
        ("run.json", "sesame-open-sesame", "the value of the environment variable MY_API_KEY"),
        ("test_results.json", "/Users/grace/thesis", "the path of a home folder"),
        ("run.json", "trained on quasimodo.", "this machine's name"),
        ("tokenizer.json", TOKEN, "an access token"),
        ("vocab.txt", "quasimodo\n/home/ada", None),
        ("run.json", "root mean square of a user", None),
    ],
)
def test_secrets_and_places_are_found_before_anything_is_sent(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, what: str | None
) -> None:
    monkeypatch.setenv("MY_API_KEY", "sesame-open-sesame")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "access token")
    monkeypatch.setattr("socket.gethostname", lambda: "quasimodo.example.org")
    monkeypatch.setattr("hf_proxadam.report.leaks.get_token", lambda: "0123-saved-token")
    publication_before = publication.collect(model)
    leaks.check(publication_before)
    (model / name).write_text(json.dumps(run_with(script={"note": content})) if name == "run.json" else content)
    if what is None:
        leaks.check(publication.collect(model))
        return
    with pytest.raises(ValueError, match=f"Nothing was published: {name} holds {what}") as caught:
        leaks.check(publication.collect(model))
    assert "sesame" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_secrets_are_found_inside_parquet_and_in_the_header_of_weights(model: Path) -> None:
    table = pa.table({"module": [TOKEN] * 3})
    pq.write_table(table, model / "scales" / "part-000000001.parquet", compression="zstd")
    with pytest.raises(ValueError, match="part-000000001.parquet holds an access token"):
        leaks.check(publication.collect(model))
    named = pa.table({"module": ["a"]}).replace_schema_metadata({"run": "/home/ada/x"})
    pq.write_table(named, model / "scales" / "part-000000001.parquet")
    with pytest.raises(ValueError, match="part-000000001.parquet holds the path of a home folder"):
        leaks.check(publication.collect(model))
    (model / "scales" / "part-000000001.parquet").unlink()
    leaks.check(publication.collect(model))
    save_file({"w": np.zeros(2)}, model / "model.safetensors", metadata={"from": TOKEN})
    with pytest.raises(ValueError, match="model.safetensors holds an access token"):
        leaks.check(publication.collect(model))


def test_checks_say_what_is_wrong_with_a_card(model: Path) -> None:
    assert all(fine for fine, _ in checks.check(publication.collect(model)))
    card = model / "README.md"
    text = card.read_text()
    wrong = {
        text.replace("license: mit", "license: My Own"): "license: My Own",
        text.replace("- nyu-mll/glue", "- nyu mll/glue"): "datasets: nyu mll/glue",
        text.replace("- arxiv:2202.00089\n", ""): "tags: optimizer",
        text.replace("value: 0.8634", "value: .nan"): "pearsonr nan",
        text.replace("pipeline_tag: text-classification\n", ""): "without pipeline_tag",
        text + "\n![x](figures/lost.png)": "but figures/lost.png",
        text.replace("license: mit", "license: [mit"): "the metadata can't be read",
    }
    for changed, told in wrong.items():
        assert changed != text
        card.write_text(changed)
        failed = [line for fine, line in checks.check(publication.collect(model)) if not fine]
        assert len(failed) == 1
        assert told in failed[0]


def test_a_dry_run_needs_no_token_and_no_network(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asked the network"))
    assert cli.main(["publish", str(model), "--dry-run"]) == 0
    told = capsys.readouterr().out
    for line in (
        f"{model} holds a model: a model repository on the Hub.",
        "  model.safetensors  ",
        "Left out:",
        "  checkpoint-10/: a checkpoint",
        "  ok     license: mit",
        "Nothing was sent.",
    ):
        assert line in told
    assert f"{os.path.getsize(model / 'README.md') / 1000:.1f} kB" in told


def test_a_card_that_is_missing_is_made_and_one_that_is_wrong_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = model / "README.md"
    text = card.read_text()
    card.unlink()
    assert cli.main(["publish", str(model), "--dry-run"]) == 0
    assert card.read_text() == text
    card.write_text(text.replace("0.8634", "0.9634"))
    assert cli.main(["publish", str(model), "--dry-run"]) == 2
    assert "The card is not what its data give" in capsys.readouterr().err
    card.write_text(text)
    assert cli.main(["publish", str(model)]) == 2
    assert "There is no --repo-id ORG/NAME" in capsys.readouterr().err


def test_a_report_older_than_the_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path / "study", seeds=(0, 1), scales=False)
    last = store.load_study(folder)["cells"][-1]
    result = store.load_result(folder, last)
    assert result is not None
    store.result_file(folder, last).unlink()
    report.make(folder)
    store.save_result(folder, result)
    assert cli.main(["publish", str(folder), "--dry-run"]) == 2
    assert "is older than the runs" in capsys.readouterr().err
    report.make(folder)
    assert cli.main(["publish", str(folder), "--dry-run"]) == 0


def test_the_environment_on_record_says_what_ran_and_not_where(tmp_path: Path) -> None:
    found = environment.environment()
    assert found["numpy"] == np.__version__
    assert socket.gethostname() not in found.values()
    assert "CPU core" in found["hardware"]
    assert environment._revision(tmp_path) == "none (not run from a git clone)"


def test_the_git_revision_tells_changed_files(tmp_path: Path) -> None:
    git = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    (tmp_path / "__init__.py").write_text("")
    for command in (("init", "-q"), ("add", "."), (*git, "commit", "-qm", "x")):
        environment._git(tmp_path, *command)
    clean = environment._revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "__init__.py").write_text("1")
    assert environment._revision(tmp_path) == f"{clean} (with uncommitted changes)"


def test_tokens_are_taken_out_of_the_command_on_record() -> None:
    command = ["run_glue.py", "--hub_token", "abc", "--hub_token=abc", "--push_to_hub", "--max_seq_length", "8"]
    assert run_record._without_secrets(command) == [
        *("run_glue.py", "--hub_token", "***", "--hub_token=***", "--push_to_hub", "--max_seq_length", "8")
    ]
