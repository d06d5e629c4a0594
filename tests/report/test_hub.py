"""Publishing over real HTTP to a Hub on the loopback, with whatever can go wrong on the way."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from huggingface_hub import DatasetCard, ModelCard

from hf_proxadam import report
from tests.hub_server import Fault, Hub, client_environment, serving

from .conftest import write_study
from .model_folder import run_with, write_model

CLIENT = Path(__file__).with_name("hub_client.py")
ADA, READER, WRONG, NOBODY = "hf_ada", "hf_reader", "hf_wrong", ""


def start(hub: Hub, home: Path, calls: list[tuple[str, list[str]]]) -> "subprocess.Popen[str]":
    command = [sys.executable, str(CLIENT), json.dumps(calls)]
    return subprocess.Popen(
        command, env=client_environment(hub, home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def results(process: "subprocess.Popen[str]") -> Any:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


class World:
    """A Hub, the folders that were published on it, and what every call said."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.hub = folder, hub
        self.study = write_study(folder / "study", seeds=(0, 1, 2))
        self.changed = write_study(folder / "changed", seeds=(0, 1), scales=False)
        self.model = write_model(folder / "model")
        self.other = write_model(folder / "other", seed=1)
        self.rejected = write_model(folder / "rejected", run=run_with(base_model={"license": "my-own"}))
        for made in (self.study, self.changed, self.model, self.other, self.rejected):
            report.make(made)
        weights = hashlib.sha256((self.other / "model.safetensors").read_bytes()).hexdigest()
        commit = "/commit/main$"
        self.hub.faults += [
            Fault("POST", f"lab/flaky{commit}", "status", times=3),
            Fault("POST", f"lab/busy{commit}", "status", status=429, headers={"Retry-After": "1"}),
            Fault("POST", f"lab/cut{commit}", "cut"),
            Fault("POST", f"lab/lost{commit}", "lose"),
            Fault("POST", "/api/validate-yaml$", "status", status=502),
            Fault("PUT", f"/lfs/{weights}$", "cut"),
            Fault("POST", f"lab/hang{commit}", "wait", until=lambda: time.sleep(4.5)),
            Fault("POST", f"lab/gone{commit}", "status", times=99),
        ]
        self.calls: dict[str, tuple[str, list[str]]] = {
            "first": (ADA, self.publish(self.study, "lab/first")),
            "again": (ADA, self.publish(self.study, "lab/first")),
            "changed": (ADA, self.publish(self.changed, "lab/changed")),
            "smaller": (ADA, self.publish(self.study, "lab/changed")),
            "smaller again": (ADA, self.publish(self.changed, "lab/changed")),
            "private": (ADA, self.publish(self.model, "ada/private", "--private")),
            "private again": (ADA, self.publish(self.model, "ada/private", "--private")),
            "public": (ADA, self.publish(self.model, "lab/first-model")),
            "too public": (ADA, self.publish(self.model, "lab/first-model", "--private")),
            "no token": (NOBODY, self.publish(self.study, "lab/nobody")),
            "wrong token": (WRONG, self.publish(self.study, "lab/nobody")),
            "reader": (READER, self.publish(self.changed, "lab/first")),
            "not mine": (ADA, self.publish(self.study, "google/study")),
            "flaky": (ADA, self.publish(self.study, "lab/flaky")),
            "busy": (ADA, self.publish(self.study, "lab/busy")),
            "cut": (ADA, self.publish(self.study, "lab/cut")),
            "lost": (ADA, self.publish(self.study, "lab/lost")),
            "upload cut": (ADA, self.publish(self.other, "lab/upload")),
            "hang": (ADA, self.publish(self.study, "lab/hang")),
            "gone": (ADA, self.publish(self.study, "lab/gone")),
            "rejected": (ADA, self.publish(self.rejected, "lab/rejected")),
            "verify study": (NOBODY, ["verify", "lab/first"]),
            "verify model": (ADA, ["verify", "ada/private"]),
            "verify nothing": (NOBODY, ["verify", "lab/nothing"]),
            "load": (ADA, ["load", "lab/first", "ada/private"]),
        }
        (self.model / "vocab.txt").write_text("one")
        (self.other / "merges.txt").write_text("other")
        both_looked = threading.Barrier(2)
        self.hub.faults.append(Fault("POST", f"lab/race{commit}", "wait", times=2, until=lambda: both_looked.wait(120)))
        both = enumerate((self.model, self.other))
        racers = [start(hub, folder / f"home{i}", [(ADA, self.publish(racer, "lab/race"))]) for i, racer in both]
        self.race = [results(racer)[0] for racer in racers]
        self.said = dict(zip(self.calls, results(start(hub, folder / "home", list(self.calls.values()))), strict=True))

    def publish(self, folder: Path, repo_id: str, *options: str) -> list[str]:
        return ["publish", str(folder), "--repo-id", repo_id, *options]

    def fails(self, name: str, code: int, *parts: str) -> None:
        said = self.said[name]
        assert said["code"] == code
        assert said["err"].startswith("hf-proxadam: ")
        assert said["err"].count("\n") == 1
        for part in parts:
            assert part in said["err"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving() as hub:
        yield World(tmp_path_factory.mktemp("hub"), hub)


def published(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.startswith(".")}


def held(hub: Hub, kind: str, repo_id: str) -> dict[str, bytes]:
    return {path: content for path, content in hub.repos[kind, repo_id].files.items() if path != ".gitattributes"}


def test_a_first_publication_is_one_commit_with_all_files(world: World) -> None:
    assert world.said["first"]["code"] == 0, world.said["first"]
    assert f"{world.hub.endpoint}/datasets/lab/first is published: 12 files sent" in world.said["first"]["out"]
    assert held(world.hub, "dataset", "lab/first") == published(world.study / "report")
    assert world.hub.commits("dataset", "lab/first") == 1
    assert not world.hub.repos["dataset", "lab/first"].private


def test_publishing_the_same_again_makes_no_commit(world: World) -> None:
    assert world.said["again"]["code"] == 0
    assert "holds all of it already: nothing was sent" in world.said["again"]["out"]
    assert world.hub.counted("POST", "lab/first/commit") == [200]
    assert world.said["private again"]["code"] == 0
    assert world.hub.commits("model", "ada/private") == 1


def test_a_change_is_one_more_commit_and_takes_away_what_is_no_longer_there(world: World) -> None:
    assert [world.said[name]["code"] for name in ("changed", "smaller", "smaller again")] == [0, 0, 0]
    repo = world.hub.repos["dataset", "lab/changed"]
    assert len(repo.commits) == 4
    assert "scales.parquet" in repo.commits[2][2]
    assert held(world.hub, "dataset", "lab/changed") == published(world.changed / "report")
    assert "5 old files removed" in world.said["smaller again"]["out"]


def test_a_private_repository_is_private_and_a_public_one_is_not_taken_for_it(world: World) -> None:
    assert world.hub.repos["model", "ada/private"].private
    assert world.said["public"]["code"] == 0
    world.fails("too public", 2, "lab/first-model is there already and is public")


def test_nothing_but_the_model_leaves_its_folder(world: World) -> None:
    files = held(world.hub, "model", "ada/private")
    assert set(files) == {
        *("README.md", "run.json", "all_results.json", "test_results.json", "trainer_state.json", "config.json"),
        *("tokenizer.json", "vocab.txt", "model.safetensors", "scales/part-000000010.parquet"),
        *(
            f"figures/{name}.png"
            for name in ("gradient_scales", "update_scales", "update_to_weight", "update_histograms")
        ),
    }
    texts = b"\n".join(content for path, content in files.items() if path not in ("tokenizer.json",))
    assert b"/home/" not in texts
    assert b"/data/" not in texts
    assert json.loads(files["config.json"])["_name_or_path"] == "bert"


def test_missing_rights_are_named(world: World) -> None:
    world.fails("no token", 1, "doesn't know who is asking for lab/nobody (401)", "hf auth login", "right to write")
    world.fails("wrong token", 1, "(401)", "Invalid credentials", "hf auth login")
    world.fails("reader", 1, "no right to write to lab/first (403)", "You don't have the rights", "role “write”")
    world.fails("not mine", 1, "no right to write to google/study (403)", "of google")


def test_errors_that_pass_are_waited_for(world: World) -> None:
    for name, answers in {"flaky": [503] * 3 + [200], "busy": [429, 200], "cut": [0, 200]}.items():
        assert world.said[name]["code"] == 0, world.said[name]
        assert world.hub.counted("POST", f"lab/{name}/commit") == answers
        assert world.hub.commits("dataset", f"lab/{name}") == 1


def test_a_lost_answer_makes_no_second_commit(world: World) -> None:
    assert world.said["lost"]["code"] == 0
    assert "12 files sent" in world.said["lost"]["out"]
    assert world.hub.counted("POST", "lab/lost/commit") == [0]
    assert world.hub.commits("dataset", "lab/lost") == 1
    assert held(world.hub, "dataset", "lab/lost") == published(world.study / "report")


def test_an_answer_that_never_comes_makes_no_second_commit(world: World) -> None:
    assert world.said["hang"]["code"] == 0
    assert world.hub.commits("dataset", "lab/hang") == 1
    assert held(world.hub, "dataset", "lab/hang") == published(world.study / "report")


def test_an_upload_cut_in_the_middle_is_sent_again(world: World) -> None:
    assert world.said["upload cut"]["code"] == 0
    weights = (world.other / "model.safetensors").read_bytes()
    assert world.hub.counted("PUT", hashlib.sha256(weights).hexdigest()) == [0, 200]
    assert held(world.hub, "model", "lab/upload")["model.safetensors"] == weights
    assert world.hub.commits("model", "lab/upload") == 1


def test_a_hub_that_stays_away_is_given_up(world: World) -> None:
    world.fails("gone", 1, "answered 503", "7 attempts", "Run the same command again later")
    assert world.hub.commits("dataset", "lab/gone") == 0


def test_a_refused_card_is_told_with_the_servers_reason(world: World) -> None:
    world.fails("rejected", 2, "Invalid metadata in README.md", '"license" must be one of [apache-2.0')


def test_what_was_published_verifies(world: World) -> None:
    for name in ("verify study", "verify model"):
        assert world.said[name]["code"] == 0, world.said[name]
        assert "the card says what the data beside it give" in world.said[name]["out"]
    world.fails("verify nothing", 1, "neither a dataset nor a model on the Hub")


def test_others_can_open_it(world: World) -> None:
    loaded = world.said["load"]
    assert loaded["study"] == DatasetCard.load(world.study / "report" / "README.md").data.to_dict()
    assert loaded["model"] == ModelCard.load(world.model / "README.md").data.to_dict()
    assert loaded["model"]["base_model"] == "org/bert"
    runs = pd.read_parquet(world.study / "report" / "runs.parquet").drop(columns="optim_args")
    assert loaded["runs"] == runs.to_dict("records")
    assert loaded["scales"][1] == 278


def test_two_publishers_at_once_both_get_through(world: World) -> None:
    """Both have looked at the repository before either commits: the second must not undo the first."""
    assert [said["code"] for said in world.race] == [0, 0]
    commits = world.hub.repos["model", "lab/race"].commits
    assert len(commits) == 3
    assert sorted(world.hub.counted("POST", "lab/race/commit")) == [200, 200, 412]
    weights = [files["model.safetensors"] for _, _, files in commits[1:]]
    assert sorted(weights) == sorted(
        (folder / "model.safetensors").read_bytes() for folder in (world.model, world.other)
    )
    # What only one of the two has is there in the end, whichever came last.
    assert {"vocab.txt", "merges.txt"} <= commits[-1][2].keys()


@pytest.mark.parametrize("name", ["study", "a/b/c", "a//b", "-a/b", "a/b.git", "a b/c", "../b", "é/b"])
def test_a_wrong_name_is_refused_before_anything_is_sent(world: World, name: str) -> None:
    from hf_proxadam.report import hub

    with pytest.raises(ValueError, match="can't be the name|give it as ORG/NAME"):
        hub.check_name(name)
