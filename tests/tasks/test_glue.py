import evaluate
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import EvalPrediction

from hf_proxadam.tasks.base import Task
from hf_proxadam.tasks.glue import GLUE, GlueTask
from hf_proxadam.tasks.glue_metric import GlueMetric
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


def test_every_task_names_known_scores():
    for name, task in GLUE.items():
        GlueTask(task_name=name, model_name_or_path="any")
        assert GlueMetric("+".join(task.metrics))._names == list(task.metrics)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"task_name": "mrcp"}, "There is no GLUE task 'mrcp'; known are: cola, mrpc"),
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
