import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import EvalPrediction

from hf_proxadam.tasks.base import Task
from hf_proxadam.tasks.glue import GlueTask
from hf_proxadam.tasks.glue_data import GLUE
from hf_proxadam.tasks.glue_metric import GlueMetric
from tests.hub_pages import Repo
from tests.hub_server import client_environment, serving
from tests.tasks.glue_data import pairs, write_bert, write_glue


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def make(bert, folder, **options):
    return GlueTask(task_name="mrpc", model_name_or_path=str(bert), dataset_path=str(folder), **options)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_reads_every_format_and_keeps_the_benchmarks_splits(bert, tmp_path, suffix):
    task = make(bert, write_glue(tmp_path / "glue", suffix=suffix), validation_fraction=0.0)
    assert (len(task.train), len(task.validation)) == (96, 48)
    assert task.validation["labels"][:] == pairs(48, 1)["label"].tolist()
    with pytest.raises(ValueError, match="no split to report on"):
        _ = task.test


def test_holds_out_a_stratified_part_of_the_training_data(bert, tmp_path):
    task = make(bert, write_glue(tmp_path / "glue"), validation_fraction=0.25)
    assert isinstance(task, Task)
    assert (len(task.train), len(task.validation), len(task.test)) == (72, 24, 48)
    assert task.test["labels"][:] == pairs(48, 1)["label"].tolist()
    whole = pairs(96, 0)
    assert sum(task.validation["labels"]) == round(0.25 * whole["label"].sum())
    rows = [tuple(row) for split in (task.train, task.validation) for row in split["input_ids"]]
    assert len(set(rows)) == len(whole.drop_duplicates(["sentence1", "sentence2"])) == 96


def test_it_tells_which_state_of_the_data_it_has(bert, tmp_path):
    folder = write_glue(tmp_path / "glue")
    told = make(bert, folder, validation_fraction=0.25).describe()
    assert told["splits"] == {
        "train": {"of": "rest of train", "examples": 72},
        "validation": {"of": "part of train", "examples": 24},
        "test": {"of": "validation", "examples": 48},
    }
    assert told["metrics"] == ["accuracy", "f1"]
    assert told["dataset"]["local"]
    assert len(told["dataset"]["sha256"]) == 64
    pairs(96, 7).to_parquet(folder / "mrpc" / "train-00000-of-00001.parquet", index=False)
    changed = make(bert, folder, validation_fraction=0.0).describe()
    assert changed["dataset"]["sha256"] != told["dataset"]["sha256"]
    assert changed["splits"].keys() == {"train", "validation"}


def test_the_revision_of_the_hubs_data_is_on_record(tmp_path):
    """Asked of a Hub on the loopback: where `datasets` keeps the revision is not documented."""
    files = {"README.md": b"---\nconfigs:\n- config_name: mrpc\n  data_files:\n"}
    for split, table in {"train": pairs(96, 0), "validation": pairs(48, 1)}.items():
        files["README.md"] += f"  - split: {split}\n    path: mrpc/{split}-*\n".encode()
        table.to_parquet(tmp_path / "table", index=False)
        files[f"mrpc/{split}-00000-of-00001.parquet"] = (tmp_path / "table").read_bytes()
    files["README.md"] += b"---\n"
    task = "GlueTask(task_name='mrpc', model_name_or_path=sys.argv[1], validation_fraction=0.0)"
    script = f"import json, sys; from hf_proxadam.tasks.glue import GlueTask; print(json.dumps({task}.describe()))"
    with serving() as hub:
        repo = hub.repos["dataset", "nyu-mll/glue"] = Repo(private=False)
        revision = repo.commit(files, "glue")
        env = client_environment(hub, tmp_path / "home")
        command = [sys.executable, "-c", script, str(write_bert(tmp_path / "bert"))]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    dataset = json.loads(done.stdout.splitlines()[-1])["dataset"]
    assert dataset["revision"] == revision
    assert not dataset["local"]


def test_limits_take_the_same_examples_every_time(bert, tmp_path):
    folder = write_glue(tmp_path / "glue")
    small, again = (make(bert, folder, max_train_samples=10, max_eval_samples=5) for _ in range(2))
    assert (len(small.train), len(small.validation), len(small.test)) == (10, 5, 5)
    assert small.train["input_ids"][:] == again.train["input_ids"][:]


def test_pads_a_batch_to_its_longest_row_and_no_further(bert, tmp_path):
    task = make(bert, write_glue(tmp_path / "glue"))
    rows = sorted((task.train[i] for i in range(30)), key=lambda row: len(row["input_ids"]))
    short, long = task.collate(rows[:4]), task.collate(rows[-4:])
    assert short["input_ids"].shape == (4, len(rows[3]["input_ids"]))
    assert long["input_ids"].shape[1] > short["input_ids"].shape[1]
    assert short["labels"].tolist() == [row["labels"] for row in rows[:4]]
    assert torch.equal(short["attention_mask"].sum(1), torch.tensor([len(row["input_ids"]) for row in rows[:4]]))
    model = task.make_model()
    assert model(**long).logits.shape == (4, 2)


def test_cuts_at_the_length_asked_for_and_refuses_more_than_the_model_takes(bert, tmp_path):
    folder = write_glue(tmp_path / "glue")
    task = make(bert, folder, max_seq_length=9)
    assert max(map(len, task.train["input_ids"])) == 9
    task = make(bert, folder)
    task.tokenizer.model_max_length = 64
    with pytest.raises(ValueError, match="max_seq_length is 128; the model takes at most 64"):
        _ = task.train


def test_metrics_are_those_of_the_benchmark():
    metric = GlueMetric("accuracy+f1")
    assert isinstance(metric, evaluate.Metric)
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    right = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    guess = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert metric.compute(predictions=guess, references=right) == pytest.approx({"accuracy": 0.7, "f1": 2 / 3})
    matthews = (3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6)
    scores = GlueMetric("matthews_correlation").compute(predictions=guess, references=right)
    assert scores == pytest.approx({"matthews_correlation": matthews})
    scores = GlueMetric("pearson+spearmanr").compute(predictions=[0.0, 1.0, 8.0], references=[0.0, 1.0, 2.0])
    assert scores["spearmanr"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(8 / np.sqrt(2 * 38))


def test_scores_come_from_the_largest_logit_or_from_the_regression(bert):
    logits = np.array([[2.0, -1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    task = GlueTask(task_name="mrpc", model_name_or_path=str(bert))
    assert task.compute_metrics(EvalPrediction(logits, np.array([0, 1, 1, 1]))) == pytest.approx(
        {"accuracy": 0.75, "f1": 0.8}
    )
    task = GlueTask(task_name="stsb", model_name_or_path=str(bert))
    scores = task.compute_metrics(EvalPrediction(np.array([[1.0], [2.0], [3.0]]), np.array([0.5, 2.5, 4.5])))
    assert scores == pytest.approx({"pearson": 1.0, "spearmanr": 1.0})
    assert task.make_model().config.num_labels == 1


@pytest.mark.parametrize(
    ("name", "files"),
    [("mrpc", {"MRPC.tsv": "1"}), ("rte", {"RTE.tsv": "not_entailment"}), ("stsb", {"STS-B.tsv": "1.250"})],
)
def test_submissions_are_written_as_the_benchmark_takes_them(bert, tmp_path, name, files):
    folder = write_glue(tmp_path / "glue", name, splits={"train": 8, "validation": 8, "test": 3})
    task = GlueTask(task_name=name, model_name_or_path=str(bert), dataset_path=str(folder))
    assert list(task.unlabelled) == list(files)
    for file, second in files.items():
        logits = np.array([[-1.0], [1.25], [7.0]]) if name == "stsb" else np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
        task.write_submission(tmp_path / file, task.unlabelled[file], logits)
        table = pd.read_csv(tmp_path / file, sep="\t", dtype=str)
        assert list(table.columns) == ["index", "prediction"]
        assert table["index"].tolist() == ["0", "1", "2"]
        assert table["prediction"][1] == second
        if name == "stsb":  # the benchmark's scale is 0 to 5
            assert table["prediction"].tolist() == ["0.000", "1.250", "5.000"]


def test_mnli_validates_on_both_kinds_of_genres_and_names_its_labels(bert, tmp_path):
    splits = {"train": 20, "validation_matched": 8, "validation_mismatched": 6, "test_matched": 5, "test_mismatched": 4}
    folder = write_glue(tmp_path / "glue", "mnli", splits=splits)
    task = GlueTask(task_name="mnli", model_name_or_path=str(bert), dataset_path=str(folder), validation_fraction=0.0)
    assert [len(split) for split in (task.train, task.validation, task.mismatched)] == [20, 8, 6]
    assert {file: len(rows) for file, rows in task.unlabelled.items()} == {"MNLI-m.tsv": 5, "MNLI-mm.tsv": 4}
    assert "labels" not in task.unlabelled["MNLI-m.tsv"].column_names
    model = task.make_model()
    assert model.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    held_out = GlueTask(
        task_name="mnli", model_name_or_path=str(bert), dataset_path=str(folder), validation_fraction=0.2
    )
    assert len(held_out.test) == 8
    assert len(held_out.mismatched) == 6


def test_what_was_not_trained_is_not_evaluated(bert, tmp_path):
    task = make(bert, tmp_path)
    with pytest.raises(ValueError, match="has no head for 2 labels: train it first"):
        task.make_model(trained=True)
    task.make_model().save_pretrained(tmp_path / "trained")
    make(tmp_path / "trained", tmp_path).make_model(trained=True)
    three = GlueTask(task_name="mnli", model_name_or_path=str(tmp_path / "trained"))
    with pytest.raises(ValueError, match="has no head for 3 labels"):
        three.make_model(trained=True)
    assert three.make_model().config.num_labels == 3


def test_tokenised_data_is_kept_and_found_again(bert, tmp_path):
    folder = write_glue(tmp_path / "glue")
    task = make(bert, folder)
    kept = [Path(file["filename"]) for file in task.train.cache_files]
    assert [file.name.startswith("cache-") for file in kept] == [True]
    times = [file.stat().st_mtime_ns for file in kept]
    tasks = [make(bert, folder), dataclasses.replace(task)]
    tasks[1].__dict__["tokenizer"] = task.tokenizer  # one that has been used
    for again in tasks:
        assert [Path(file["filename"]) for file in again.train.cache_files] == kept
    assert [file.stat().st_mtime_ns for file in kept] == times


def test_batches_may_be_padded_to_one_length(bert, tmp_path):
    task = make(bert, write_glue(tmp_path / "glue"), pad_to_max_length=True, max_seq_length=40)
    assert task.collate([task.train[0], task.train[1]])["input_ids"].shape == (2, 40)


def test_every_task_names_known_scores():
    for name, task in GLUE.items():
        GlueTask(task_name=name, model_name_or_path="any")
        assert GlueMetric("+".join(task.metrics))._names == list(task.metrics)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"task_name": "mrcp"}, "There is no GLUE task 'mrcp'; known are: ax, cola, mnli, mrpc"),
        ({"validation_fraction": 1.0}, r"validation_fraction is 1.0; it must be in \[0, 1\)"),
        ({"max_train_samples": 0}, "max_train_samples is 0"),
        ({"dataset_path": "nowhere"}, "dataset_path is 'nowhere', but there is no such folder"),
        ({"model_name_or_path": "./nowhere"}, "model_name_or_path is './nowhere', but there is no such folder"),
    ],
)
def test_options_out_of_range_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        GlueTask(**{"task_name": "mrpc", "model_name_or_path": "any", **options})


def rewrite(folder, change):
    path = folder / "mrpc" / "train-00000-of-00001.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda table: table.drop(columns=["sentence2"]), "split train has no column sentence2; it has: sentence1"),
        (lambda table: table.assign(label=table["label"] + 1), "split train has the label 2; it must be a whole num"),
        (lambda table: table.head(0), "The train data in .*mrpc can't be read: it has no rows"),
    ],
)
def test_wrong_data_gets_one_sentence(bert, tmp_path, change, sentence):
    folder = write_glue(tmp_path / "glue")
    rewrite(folder, change)
    with pytest.raises(ValueError, match=sentence) as caught:
        _ = make(bert, folder).train
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files_get_one_sentence(bert, tmp_path):
    folder = write_glue(tmp_path / "glue", "rte")
    with pytest.raises(ValueError, match=r"glue/mrpc is not there; .*glue has: rte"):
        _ = make(bert, folder).train
    folder = write_glue(tmp_path / "other")
    (folder / "mrpc" / "train-00000-of-00001.parquet").write_text("nothing")
    with pytest.raises(ValueError, match=r"The train data in .*other/mrpc can't be read") as caught:
        _ = make(bert, folder).train
    assert "\n" not in str(caught.value)
    (folder / "mrpc" / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match="has no file for train"):
        _ = make(bert, folder).train


def test_a_model_that_is_none_gets_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    task = GlueTask(task_name="mrpc", model_name_or_path=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"The model .*empty' can't be loaded") as caught:
        task.make_model()
    assert "\n" not in str(caught.value)


def test_the_hub_is_named_where_there_is_no_local_folder(bert):
    task = GlueTask(task_name="mrpc", model_name_or_path=str(bert))
    with pytest.raises(ValueError, match="nyu-mll/glue can't be had from the Hub"):
        _ = task.train
