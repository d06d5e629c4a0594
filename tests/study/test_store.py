import json

import pytest

from hf_proxadam.study import store

STUDY = {"optimizers": [{"label": "b"}, {"label": "a"}]}


def result(name, optimizer, seed, status="finished", learning_rate=0.1):
    scores = {"accuracy": 0.5, "loss": 1.0} if status == "finished" else None
    return {
        "hash": name,
        "cell": {
            "optimizer": optimizer,
            "optim": optimizer,
            "optim_args": None,
            "learning_rate": learning_rate,
            "weight_decay": 0.0,
            "seed": seed,
        },
        "status": status,
        "validation": scores,
        "test": scores,
        "curve": [
            {"step": 1, "epoch": 0.5, "learning_rate": 0.1, "train_loss": 2.0},
            {"step": 2, "epoch": 1.0, "validation_loss": 1.0, "validation_accuracy": 0.5},
        ],
        "optimizer": {"class": "A", "defaults": {}},
        "timing": {"train_seconds": 1.0, "samples_per_second": 10.0},
    }


@pytest.fixture
def folder(tmp_path):
    results = [
        result("c1", "a", 1),
        result("c2", "a", 0),
        result("c3", "b", 0, learning_rate=0.2),
        result("c4", "b", 0, "diverged"),
        result("old", "a", 9),
    ]
    store.save_study(tmp_path, STUDY, ["c1", "c2", "c3", "c4", "waiting"], ["hf-proxadam"])
    for item in results:
        store.save_result(tmp_path, item)
    return tmp_path


def test_runs_are_sorted_by_the_studys_order_and_only_its_own_count(folder):
    runs = store.load_runs(folder)
    assert runs["hash"].tolist() == ["c4", "c3", "c2", "c1"]
    assert list(runs.columns) == [
        "hash",
        *store.CELL_COLUMNS,
        "status",
        "validation_accuracy",
        "validation_loss",
        "test_accuracy",
        "test_loss",
        *store.TIMING_COLUMNS,
    ]
    assert runs["test_accuracy"].isna().tolist() == [True, False, False, False]


def test_runs_of_a_study_where_all_diverged_or_none_is_finished(tmp_path):
    store.save_study(tmp_path, STUDY, ["c1"], [])
    assert store.load_runs(tmp_path).empty
    assert store.load_curves(tmp_path).empty
    store.save_result(tmp_path, result("c1", "a", 0, "diverged"))
    assert store.load_runs(tmp_path)["status"].tolist() == ["diverged"]


def test_curves_are_one_long_table(folder):
    curves = store.load_curves(folder)
    assert list(curves.columns[:5]) == ["hash", "step", "epoch", "learning_rate", "train_loss"]
    of_one = curves[curves["hash"] == "c1"]
    assert of_one["train_loss"].notna().tolist() == [True, False]
    assert of_one["validation_accuracy"].notna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"schema_version": 1, "ha', "can't be read"),
        ("", "can't be read"),
        ("[]", "schema version None"),
        ('{"schema_version": 2}', "schema version 2, this hf_proxadam reads version 1"),
        ('{"schema_version": 1, "hash": "c1"}', "has no cell, status, curve, timing"),
        (json.dumps({"schema_version": 1, **result("c9", "a", 0)}), "holds the result of cell c9"),
    ],
)
def test_a_damaged_result_gets_one_sentence_that_names_the_file(folder, content, sentence):
    path = store.result_file(folder, "c1")
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        store.load_runs(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a study folder"):
        store.load_study(tmp_path)


def test_a_result_with_nan_is_never_written(tmp_path):
    broken = result("c1", "a", 0)
    broken["test"]["loss"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        store.save_result(tmp_path, broken)
    assert store.load_result(tmp_path, "c1") is None


def test_a_result_clears_the_error_of_the_attempt_before(tmp_path):
    error = store.error_file(tmp_path, "c1")
    error.parent.mkdir(parents=True)
    error.write_text("boom")
    store.save_result(tmp_path, result("c1", "a", 0))
    assert not error.exists()
