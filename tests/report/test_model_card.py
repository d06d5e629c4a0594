"""The card of a fine-tuned model says what the files beside it say, whatever strings stand in them."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hf_proxadam import report
from hf_proxadam.report import model_data
from hf_proxadam.report.model_card import make_card, metadata

from .model_folder import RESULTS, RUN, run_with, write_model
from .test_card import as_number, table_below
from .test_text import ANY, PARSER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.make(write_model(tmp_path_factory.mktemp("model") / "out")).parent


@pytest.fixture(scope="module")
def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def contents_with(run: dict[str, Any], **changes: Any) -> model_data.ModelContents:
    given_ = {"results": RESULTS, "history": [], "scales": None, **changes}
    return model_data.ModelContents(run=run, **given_)


def test_the_metadata_is_what_the_hub_expects(card: str) -> None:
    data = ModelCard(card).data.to_dict()
    results = data.pop("model-index")
    assert data == {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "org/bert",
        "datasets": ["nyu-mll/glue"],
        "metrics": ["pearsonr", "spearmanr"],
        "tags": ["optimizer", "adamw", "weight-decay", "scale-free", "hf_proxadam", "arxiv:2202.00089"],
    }
    assert results == [
        {
            "name": "org/bert fine-tuned on GLUE stsb with proxadam",
            "results": [
                {
                    "task": {"type": "text-classification"},
                    "dataset": {
                        "name": "GLUE stsb",
                        "type": "nyu-mll/glue",
                        "config": "stsb",
                        "split": "validation",
                        "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
                    },
                    "metrics": [
                        {"type": "pearsonr", "value": RESULTS["test_pearson"]},
                        {"type": "spearmanr", "value": RESULTS["test_spearmanr"]},
                    ],
                }
            ],
        }
    ]


def test_the_results_are_those_of_the_file_beside_it(folder: Path, card: str) -> None:
    results = json.loads((folder / "all_results.json").read_text())
    table = table_below(card, "Results")
    assert len(table) == 6
    for row in table.to_dict("records"):
        split = {"validation": "eval", "test": "test"}[row["split"]]
        assert as_number(row["value"]) == pytest.approx(results[f"{split}_{row['metric']}"], abs=5.1e-5)
    assert list(table["examples"]) == ["575"] * 3 + ["1500"] * 3
    assert "Training took 2 min 5 s, at 41.4 examples per second." in card


def test_mnli_has_a_second_set_to_validate_on() -> None:
    splits = {"validation": {"of": "validation_matched", "examples": 9}, "mismatched": {"of": "other", "examples": 8}}
    run = run_with(task={"metrics": ["accuracy"], "splits": splits})
    contents = contents_with(run, results={"eval_accuracy": 0.75, "eval_mismatched_accuracy": 0.5})
    assert list(table_below(make_card(contents, []), "Results")["split"]) == ["validation", "mismatched"]
    results = metadata(contents).to_dict()["model-index"][0]["results"]
    assert {entry["dataset"]["split"]: entry["metrics"][0]["value"] for entry in results} == {
        "validation_matched": 0.75,
        "other": 0.5,
    }


def test_learning_rate_and_decay_are_those_that_the_groups_were_given(card: str) -> None:
    """The class's default for weight_decay stands in `defaults` and is not what ran."""
    assert "| hf_proxadam.optim.proxadam.ProxAdam | 0.0001 | 0.01 | eps = 1e-08 |" in card


def test_the_log_is_thinned_out_and_keeps_its_ends(card: str) -> None:
    assert "From the log (12 of 20 logged steps):" in card
    rows = [line for line in card.splitlines() if line.startswith(("| 2 |", "| 40 |"))]
    assert rows == ["| 2 | 2.0000 | – |", "| 40 | – | 0.0750 |"]  # noqa: RUF001


def test_the_scales_are_those_of_the_parquet_files(folder: Path, card: str) -> None:
    scales = pd.read_parquet(folder / "scales")
    row = table_below(card, "Scales of gradients and updates").iloc[0]
    assert row["steps recorded"] == f"{scales['step'].nunique()}"
    updates = scales[scales["quantity"] == "update"]
    share = 100 * updates["zeros"].sum() / updates["finite"].sum()
    assert float(row["zero updates (%)"]) == pytest.approx(share, abs=0.0051)


def test_it_tells_nothing_of_the_machine(card: str) -> None:
    assert "ada" not in card.replace("adam", "").replace("Adam", "")
    assert "run_glue.py --model_name_or_path=bert --dataset_path glue" in card


def test_made_twice_it_is_the_same_to_the_byte(folder: Path) -> None:
    before = {path: path.read_bytes() for path in [folder / "README.md", *(folder / "figures").iterdir()]}
    assert len(before) == 5
    report.make(folder)
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_not_known_is_not_claimed() -> None:
    run = run_with(
        base_model={"id": None, "name": "./somewhere/model", "license": None, "revision": None},
        task={"dataset": {"name": "GLUE mrpc", "id": "nyu-mll/glue", "local": True, "sha256": "ab" * 32}},
        training={"max_grad_norm": 1.0},
    )
    contents = contents_with(run, results={"eval_pearson": 0.5, "eval_loss": math.nan, "train_loss": 1.0})
    data = metadata(contents).to_dict()
    assert data["license"] == "unknown"
    assert "base_model" not in data
    assert "datasets" not in data
    result = data["model-index"][0]["results"][0]
    assert result["metrics"] == [{"type": "pearsonr", "value": 0.5}]
    assert result["dataset"]["split"] == "part of train"
    card = make_card(contents, [])
    for sentence in (
        "The licence is not known",
        "came from a local folder; that it is the dataset it is named after was not checked",
        "clipped at norm 1,",
        "There is no test split",
        "None were recorded in this run.",
    ):
        assert sentence in card
    assert "Training took" not in card
    assert f"sha256 of the files {'ab' * 32}" in card
    assert "The model has not been evaluated." in make_card(contents_with(run, results={}), [])


FIELDS = ("base", "license", "dataset", "config", "revision", "metric", "tag", "optim", "extra")


def with_strings(strings: dict[str, str]) -> model_data.ModelContents:
    """The same model, with strings from outside wherever strings can come from."""
    extra = strings["extra"]
    run = run_with(
        base_model={"id": strings["base"], "name": extra, "license": strings["license"], "revision": extra},
        training={"optim": strings["optim"], "seed": extra, extra: [extra]},
        optimizer={"class": extra, "defaults": {extra: extra}},
        environment={extra: extra},
    )
    run["command"] = [extra, strings["base"]]
    run["task"] |= {
        "pipeline_tag": strings["tag"],
        "metrics": [strings["metric"]],
        "dataset": {
            "name": strings["dataset"],
            "id": strings["dataset"],
            "config": strings["config"],
            "revision": strings["revision"],
        },
    }
    results = {f"{split}_{strings['metric']}": 0.25 for split in ("eval", "test")}
    return contents_with(run, results=results)


def structure(card: str) -> list[tuple[str, str, int]]:
    return [
        (token.type, token.tag, token.level) for token in PARSER.parse(ModelCard(card).text) if token.type != "inline"
    ]


@given(strings=st.fixed_dictionaries(dict.fromkeys(FIELDS, ANY)))
@example(strings=dict.fromkeys(FIELDS, "---\nlicense: mit\n---"))
@example(strings=dict.fromkeys(FIELDS, "```\n# h | <b> [x](http://e.example)"))
@example(strings=dict.fromkeys(FIELDS, "' \" : # \x85\u2028"))
@example(strings=dict.fromkeys(FIELDS, "\x85"))
@example(strings=dict.fromkeys(FIELDS, "a\u2029\r b"))
@example(strings={**dict.fromkeys(FIELDS, "null"), "metric": "loss"})
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_string_in_any_field_loads_back_and_keeps_the_cards_structure(strings: dict[str, str]) -> None:
    contents = with_strings(strings)
    card = make_card(contents, ["update_scales.png"])
    assert ModelCard(card).data.to_dict() == metadata(contents).to_dict()
    found = metadata(contents).to_dict()
    assert found["pipeline_tag"] == strings["tag"]
    assert found["license"] == (strings["license"] or "unknown")
    if strings["metric"] != "loss":
        # Nothing in place of a revision or a licence is told in other words.
        plain = with_strings({name: string and "plain" for name, string in strings.items()} | {"metric": "plain"})
        assert structure(card) == structure(make_card(plain, ["update_scales.png"]))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("run.json", None, "has no run.json"),
        ("run.json", "{", "can't be read"),
        ("run.json", "{}", "has no command, environment, task"),
        ("run.json", json.dumps({**RUN, "task": {}}), "has no metrics, dataset, splits, pipeline_tag in task"),
        ("all_results.json", '{"eval_loss": "0.5"}', "has '0.5' as eval_loss, which is not a number"),
        ("all_results.json", None, "has no all_results.json"),
        ("trainer_state.json", "[]", "has no log_history"),
    ],
)
def test_files_that_are_missing_or_wrong_are_named(
    tmp_path: Path, name: str, content: str | None, sentence: str
) -> None:
    folder = write_model(tmp_path / "out")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(ValueError, match=sentence):
        report.make(folder)
