"""The card says what the files beside it say, and no more."""

import ast
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import datasets
import matplotlib
import numpy as np
import pandas as pd
import pytest
from huggingface_hub import DatasetCard

import hf_proxadam.report
from hf_proxadam import report
from hf_proxadam.report import data
from hf_proxadam.report.card import make_card
from hf_proxadam.report.text import NONE

from .conftest import OPTIMIZERS, write_study


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def card_of(folder: Path) -> str:
    """The card without its figures, by the way that `make` goes: written, read back, told."""
    data.write(data.collect(folder), folder / "report")
    return make_card(data.read(folder / "report"), [])


def table_below(card: str, heading: str) -> pd.DataFrame:
    lines = card.split(f"## {heading}\n\n", 1)[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return pd.DataFrame(rows[2:], columns=rows[0])


def as_number(cell: str) -> float:
    return math.nan if cell == NONE else float(cell.replace("\u2212", "-"))


@pytest.fixture(scope="module")
def made(study_folder: Path) -> Path:
    return report.make(study_folder).parent


def test_the_table_equals_what_the_runs_beside_it_give(made: Path) -> None:
    runs = pd.read_parquet(made / "runs.parquet")
    table = table_below((made / "README.md").read_text(encoding="utf-8"), "Results")
    assert list(table["optimizer"]) == list(OPTIMIZERS)
    at_best: dict[str, pd.Series] = {}
    for row in table.to_dict("records"):
        own = runs[runs["optimizer"] == row["optimizer"]]
        cell = own.groupby(["learning_rate", "weight_decay"])["validation_accuracy"].mean().idxmax()
        assert (float(row["learning rate"]), float(row["weight decay"])) == cell
        best = own[(own["learning_rate"] == cell[0]) & (own["weight_decay"] == cell[1])].set_index("seed")
        at_best[row["optimizer"]] = scores = 100 * best["test_accuracy"]
        assert as_number(row["test accuracy (%)"]) == pytest.approx(scores.mean(), abs=0.0051)
        assert as_number(row["sd"]) == pytest.approx(scores.std(), abs=0.0051)
        low, high = map(as_number, row["95 % interval"].split(" to "))
        assert scores.min() - 0.01 <= low < scores.mean() < high <= scores.max() + 0.01
        assert row["seeds"] == "3"
        difference = (scores - at_best["adam_l2"]).mean() if row["optimizer"] != "adam_l2" else math.nan
        assert as_number(row["difference to adam_l2"]) == pytest.approx(difference, abs=0.0051, nan_ok=True)
        assert row["diverged runs"] == "0 of 12"


def test_the_scales_in_the_card_equal_those_beside_it(made: Path) -> None:
    runs = pd.read_parquet(made / "runs.parquet").set_index("hash")
    scales = pd.read_parquet(made / "scales.parquet")
    table = table_below((made / "README.md").read_text(encoding="utf-8"), "Scales of gradients and updates")
    assert set(scales["hash"]) < set(runs.index)
    for row in table.to_dict("records"):
        own = scales[scales["hash"].map(runs["optimizer"]) == row["optimizer"]]
        assert row["steps recorded"] == "4"
        sums = own[own["quantity"] == "gradient"].groupby(["step", "module"])[["sum_squares", "finite"]].sum()
        log2_rms = np.log2(np.sqrt(sums["sum_squares"] / sums["finite"])).unstack("step")
        spread = (log2_rms.quantile(0.75) - log2_rms.quantile(0.25)).median()
        assert float(row["gradients: between modules"]) == pytest.approx(spread, abs=0.051)
        updates = own[own["quantity"] == "update"]
        share = 100 * updates["zeros"].sum() / updates["finite"].sum()
        assert float(row["zero updates (%)"]) == pytest.approx(share, abs=0.0051)


def test_made_twice_it_is_the_same_to_the_byte_whatever_matplotlibs_settings(made: Path) -> None:
    before = files_of(made)
    with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 40, "axes.facecolor": "red"}):
        report.make(made.parent)
        assert matplotlib.rcParams["font.size"] == 20
    assert files_of(made) == before
    figures = ["test_error", "learning_curves"]
    figures += ["gradient_scales", "update_scales", "update_to_weight", "update_histograms"]
    assert {name for name in before if name.endswith(".png")} == {f"figures/{name}.png" for name in figures}


def test_the_metadata_loads_as_meant_and_the_hubs_library_opens_the_tables(made: Path, tmp_path: Path) -> None:
    metadata = DatasetCard.load(made / "README.md").data.to_dict()
    assert metadata["license"] == "apache-2.0"
    assert metadata["pretty_name"] == "Optimizers compared: digits"
    assert "arxiv:2202.00089" in metadata["tags"]
    assert metadata["size_categories"] == ["1K<n<10K"]
    assert [config["config_name"] for config in metadata["configs"]] == ["runs", "curves", "scales"]
    runs = datasets.load_dataset(str(made), split="train", cache_dir=str(tmp_path))
    assert runs.num_rows == 48
    assert "test_accuracy" in runs.column_names
    scales = datasets.load_dataset(str(made), "scales", split="train", cache_dir=str(tmp_path))
    assert len(scales[0]["histogram"]) == 278


def test_columns_keep_their_units(made: Path) -> None:
    import pyarrow.parquet

    field = pyarrow.parquet.read_schema(made / "scales.parquet").field("sum_squares")
    assert b"unit" in field.metadata


def test_fewer_than_three_seeds_claim_nothing(tmp_path: Path) -> None:
    card = card_of(write_study(tmp_path, seeds=(0, 1), scales=False))
    table = table_below(card, "Results")
    assert set(table["95 % interval"]) == set(table["its 95 % interval"]) == {NONE}
    assert list(table["seeds"]) == ["2"] * 4
    assert "neither supports nor contradicts" in card
    assert "2 seeds: too few for an interval" in card
    assert "**Better" not in card
    assert "**Possibly" not in card
    assert "95 % interval +" not in card


def flat(gap: float, noise: float) -> Any:
    """Scores that differ by `gap` between Adam-l2 and the others, and by `noise` from seed to seed."""

    def score(optimizer: int, rate: int, decay: int, seed: int, split: str) -> float:
        return 0.8 + gap * (optimizer > 0) + noise * (-1) ** (seed + optimizer) * (1 + seed / 10)

    return score


@pytest.mark.parametrize(
    ("gap", "noise", "seeds", "says"),
    [
        (0.02, 0.001, 6, ["**Better than adam_l2** is adamw_torch (+2.", "This agrees with"]),
        (0.02, 0.001, 3, ["**Possibly better than adam_l2** is", "once in 4 times", "This agrees with"]),
        (-0.02, 0.001, 6, ["**Worse than adam_l2** is adamw_torch (\u2212", "This goes against"]),
        (0.001, 0.05, 6, ["**No difference** to adam_l2 **can be claimed**", "includes zero", "neither supports"]),
        (0.02, 0.001, 1, ["**No difference** to adam_l2 **can be claimed**", "at least 3 seeds", "neither supports"]),
    ],
)
def test_the_verdict_follows_from_the_intervals(
    tmp_path: Path, gap: float, noise: float, seeds: int, says: list[str]
) -> None:
    folder = write_study(
        tmp_path,
        labels=OPTIMIZERS[:2],
        rates=(0.001,),
        decays=(0.1,),
        seeds=tuple(range(seeds)),
        score=flat(gap, noise),
        scales=False,
    )
    card = card_of(folder)
    for sentence in says:
        assert sentence in card
    assert ("weak" in card) == (seeds == 3)


def test_where_smaller_is_better_the_verdict_turns_round(tmp_path: Path) -> None:
    folder = write_study(
        tmp_path,
        labels=OPTIMIZERS[:2],
        rates=(0.001,),
        seeds=tuple(range(6)),
        score=flat(0.02, 0.001),
        scales=False,
        greater_is_better=False,
    )
    assert "**Worse than adam_l2** is adamw_torch" in card_of(folder)


def test_diverged_runs_are_counted_and_a_lost_optimizer_is_told(tmp_path: Path) -> None:
    folder = write_study(
        tmp_path,
        diverged=lambda cell: (
            cell["optimizer"] == "adamw_torch" or (cell["optimizer"] == "proxadam" and cell["seed"] == 1)
        ),
        scales=False,
    )
    path = report.make(folder)
    card = path.read_text(encoding="utf-8")
    table = table_below(card, "Results").set_index("optimizer")
    assert table.loc["adamw_torch", "diverged runs"] == "12 of 12"
    assert table.loc["adamw_torch", "test accuracy (%)"] == NONE
    assert table.loc["proxadam", "seeds"] == "2 of 3"
    assert "adamw_torch (no seed in common)" in card
    assert "16 runs diverged" in card
    assert "None were recorded" in card
    assert not (path.parent / "scales.parquet").exists()
    assert sorted(p.name for p in (path.parent / "figures").iterdir()) == ["learning_curves.png", "test_error.png"]


def test_an_unfinished_study_says_so(tmp_path: Path) -> None:
    folder = write_study(tmp_path, missing=lambda cell: cell["seed"] == 2 and cell["weight_decay"] == 0.1)
    assert "**Not finished**: 40 of 48 runs are in" in card_of(folder)


def test_nothing_to_report_on_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a study folder"):
        report.make(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no finished cell"):
        report.make(write_study(tmp_path / "empty", missing=lambda cell: True))
    with pytest.raises(ValueError, match=r"All 48 finished cells .* diverged"):
        report.make(write_study(tmp_path / "lost", diverged=lambda cell: True, scales=False))


def test_figures_of_scales_that_are_gone_go_too(tmp_path: Path) -> None:
    folder = write_study(tmp_path, labels=OPTIMIZERS[:1], rates=(0.001,), decays=(0.1,), seeds=(0,))
    made = report.make(folder).parent
    assert (made / "figures" / "gradient_scales.png").exists()
    for part in folder.glob("cells/*/scales/*.parquet"):
        part.unlink()
    report.make(folder)
    assert not (made / "figures" / "gradient_scales.png").exists()
    assert not (made / "scales.parquet").exists()


def test_no_absolute_path_is_published(tmp_path: Path) -> None:
    folder = write_study(
        tmp_path, scales=False, model={"path": "/srv/secret/model", "list": ["~/x", "a=/srv/secret/b"]}
    )
    for path in folder.glob("cells/*/result.json"):
        result = json.loads(path.read_text())
        result["cell"]["optim_args"] = "teacher=/srv/secret/weights,eps=1"
        path.write_text(json.dumps(result))
    card = card_of(folder)
    for name, content in files_of(folder / "report").items():
        assert b"secret" not in content, name
        assert b"/home/ada" not in content, name
    assert "/home/ada" not in card
    assert "hf-proxadam compare study.yaml" in card
    assert pd.read_parquet(folder / "report" / "runs.parquet")["optim_args"].iloc[0] == "teacher=weights,eps=1"


def test_optimizers_that_could_not_be_told_apart_without_paths_are_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path, labels=("/a/same", "/b/same"), scales=False)
    with pytest.raises(ValueError, match="give the optimizers other labels"):
        data.collect(folder)


def test_the_report_reads_files_and_imports_no_torch() -> None:
    for path in Path(hf_proxadam.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"torch", "transformers", "pyplot"}, (path, roots)
            assert "matplotlib.pyplot" not in names


def test_contents_are_read_back_as_they_were_written(study_folder: Path, tmp_path: Path) -> None:
    contents = data.collect(study_folder)
    data.write(contents, tmp_path)
    again = data.read(tmp_path)
    assert dataclasses.asdict(again).keys() == dataclasses.asdict(contents).keys()
    assert again.study == contents.study
    pd.testing.assert_frame_equal(again.runs, contents.runs, check_dtype=False)
    pd.testing.assert_frame_equal(again.curves, contents.curves, check_dtype=False)
    csv = pd.read_csv(tmp_path / "runs.csv")
    assert np.array_equal(csv["test_accuracy"], again.runs["test_accuracy"])
