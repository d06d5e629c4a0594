"""Studies with several model variants or loss multipliers: each has a table of its own, and a point in the figure."""

import json
import shutil
from pathlib import Path

import pytest

from hf_proxadam import report
from hf_proxadam.report import data, gap
from hf_proxadam.report.card import make_card
from hf_proxadam.study import store
from tests.report.conftest import MODULES, write_scales, write_study
from tests.report.test_card import table_below

AHEAD = {"depth 8": 0.01, "depth 20": 0.03, "depth 2": 0.0}
LABELS = ("adam_l2", "adamw_torch", "proxadam")


def write_settings(folder: Path, settings: dict[tuple[str, float], float], **study: object) -> Path:
    """A study folder in which every optimizer but Adam-l2 is ahead of it by `settings`' values."""
    cells: list[str] = []
    for i, ((variant, multiplier), ahead) in enumerate(settings.items()):

        def score(o: int, r: int, d: int, seed: int, split: str, i: int = i, ahead: float = ahead) -> float:
            return 0.9 - 0.02 * i + ahead * (o > 0) - 0.05 * r + 0.001 * seed

        part = write_study(folder / f"part{i}", labels=LABELS, score=score, seeds=(0, 1, 2), **study)
        for number, old in enumerate(sorted(part.glob("cells/*"))):
            cell_hash = f"{i}{number:015x}"
            new = shutil.copytree(old, folder / "cells" / cell_hash)
            result = json.loads((new / "result.json").read_text())
            result["cell"] |= {"variant": variant, "loss_multiplier": multiplier}
            (new / "result.json").write_text(json.dumps({**result, "hash": cell_hash}))
            if (new / "scales").exists():
                shutil.rmtree(new / "scales")
                # More modules on other scales: the spread grows with the number of the setting.
                write_scales(new / "scales", MODULES[: 2 * i + 2], [1, 11])
            cells.append(cell_hash)
        content = json.loads(store.study_file(part).read_text())
        shutil.rmtree(part)
    store.study_file(folder).write_text(json.dumps({**content, "cells": cells}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    variants = [{"label": label, "num_hidden_layers": label.split()[1]} for label in AHEAD]
    settings = {(label, 1.0): ahead for label, ahead in AHEAD.items()}
    return write_settings(tmp_path_factory.mktemp("variants"), settings, model_variants=variants)


def test_every_variant_has_a_table_of_its_own_in_the_order_of_the_study(folder: Path) -> None:
    data.write(data.collect(folder), folder / "report")
    card = make_card(data.read(folder / "report"), [])
    assert [line for line in card.splitlines() if line.startswith("### ")] == [f"### {label}" for label in AHEAD]
    for label, ahead in AHEAD.items():
        table = table_below(card, label).set_index("optimizer")
        assert list(table.index) == list(LABELS)
        assert table.loc["proxadam", "difference to adam_l2"] in (f"{100 * ahead:+.2f}", f"{100 * ahead:.2f}")
        assert table.loc["proxadam", "diverged runs"] == "0 of 12"
    assert "2 learning rates, 2 weight decays, 3 seeds and 3 model variants" in card
    assert "3 model variants, one data split" in card
    assert "adam_l2 (depth 20)" in card, "in the tables over all variants the optimizers carry their variant"


def test_the_points_are_those_of_the_tables_and_their_rank_correlation_is_told(folder: Path) -> None:
    data.write(data.collect(folder), folder / "report")
    contents = data.read(folder / "report")
    points = gap.points(contents)
    own = points[points["optimizer"] == "proxadam"].set_index("setting")
    assert own["advantage"].to_dict() == pytest.approx(AHEAD)
    assert own["spread"].is_monotonic_increasing, "as they were written"
    assert own["spread"].nunique() == 3
    # Advantages 0.01, 0.03, 0 in the order of the spreads: ranks 2, 3, 1, so 1 - 6 * 6 / (3 * 8).
    told = gap.section(contents)
    assert "adamw_torch \u22120.50 (3 points) and proxadam \u22120.50 (3 points)" in told


def test_the_report_has_the_figure_and_is_the_same_twice(folder: Path) -> None:
    card = report.make(folder)
    first = {path: path.read_bytes() for path in card.parent.rglob("*") if path.is_file()}
    assert card.parent / "figures" / "gap_against_spread.png" in first
    assert "figures/gap_against_spread.png" in card.read_text()
    report.make(folder)
    assert {path: path.read_bytes() for path in card.parent.rglob("*") if path.is_file()} == first


def test_two_multipliers_are_told_apart_and_no_correlation_is_claimed(tmp_path: Path) -> None:
    folder = write_settings(tmp_path, {("", 1.0): 0.0, ("", 10.0): 0.02}, loss_multipliers=[1.0, 10.0])
    contents = data.collect(folder)
    card = make_card(contents, [])
    assert [line for line in card.splitlines() if line.startswith("### ")] == ["### loss x 1", "### loss x 10"]
    assert "**No rank correlation is claimed**" in card
    assert set(contents.by_label.optimizers) == {f"{label} (loss x {n})" for label in LABELS for n in (1, 10)}


def test_a_study_of_one_setting_says_nothing_of_settings(study_folder: Path) -> None:
    contents = data.collect(study_folder)
    assert list(contents.parts) == [""]
    assert contents.by_label is contents
    assert gap.section(contents) == ""
    assert gap.gap_against_spread(contents) is None
