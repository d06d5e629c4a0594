"""A card that does not say what its data give is found out, wherever it was changed."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from hf_proxadam import cli, report
from hf_proxadam.report.verify import verify

from .conftest import write_study
from .model_folder import write_model


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    report.make(write_study(folder / "study", labels=("adam_l2", "proxadam"), rates=(0.001,), scales=False))
    report.make(write_model(folder / "model"))
    return folder


@pytest.fixture
def copies(originals: Path, tmp_path: Path) -> Path:
    shutil.copytree(originals, tmp_path / "copies")
    return tmp_path / "copies"


def replace(path: Path, pattern: str, by: str) -> None:
    before = path.read_text(encoding="utf-8")
    after, count = re.subn(pattern, by, before, count=1)
    assert count == 1
    assert after != before
    path.write_text(after, encoding="utf-8")


def better_runs(folder: Path) -> None:
    path = folder / "study" / "report" / "runs.parquet"
    runs = pd.read_parquet(path)
    runs.loc[runs["optimizer"] == "proxadam", "test_accuracy"] += 0.01
    runs.to_parquet(path)


def paint(folder: Path, says_who: bool = True) -> None:
    path = folder / "model" / "figures" / "update_scales.png"
    with Image.open(path) as image:
        software, changed = image.info["Software"], image.copy()
    ImageDraw.Draw(changed).rectangle((10, 10, 14, 14), fill="red")
    info = PngInfo()
    if says_who:
        info.add_text("Software", software)
    changed.save(path, pnginfo=info)


def other_results(folder: Path) -> None:
    path = folder / "model" / "all_results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, "test_pearson": 0.9}))


def in_card(kind: str, pattern: str, by: str) -> Callable[[Path], None]:
    card = {"study": "study/report/README.md", "model": "model/README.md"}[kind]
    return lambda folder: replace(folder / card, pattern, by)


TAMPERED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a cell of the table": (
        "study",
        in_card("study", r"(\| proxadam \| 0.001 \| [\d.]+ \| )\d\d", r"\g<1>99"),
        "line ",
    ),
    "a number in a sentence": ("study", in_card("study", r"3 seeds\)", "9 seeds)"), "9 seeds"),
    "a row that was added": ("study", in_card("study", r"(\| proxadam \|.*\n)", r"\1| magic | 1 |\n"), "magic"),
    "the metadata": ("study", in_card("study", "license: apache-2.0", "license: mit"), "license: mit"),
    "the data": ("study", better_runs, "the data give"),
    "the table for people": (
        "study",
        lambda folder: replace(folder / "study/report/runs.csv", r"0\.9", "0.8"),
        "runs.csv is not the table of runs.parquet",
    ),
    "a figure that is gone": (
        "study",
        lambda folder: (folder / "study/report/figures/test_error.png").unlink(),
        "figures/test_error.png is missing",
    ),
    "a result in the model's index": ("model", in_card("model", "value: 0.8634", "value: 0.9634"), "0.9634"),
    "a result in the model's table": ("model", in_card("model", r"0\.8512", "0.9512"), "0.9512"),
    "the model's results": ("model", other_results, "0.9"),
    "a figure of unknown origin": (
        "model",
        lambda folder: paint(folder, False),
        "figures/update_scales.png is not the",
    ),
    "the model's figure": ("model", paint, "figures/update_scales.png is not the figure that the data give"),
}


def test_what_was_just_made_is_right(originals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("study", "study/report", "model"):
        assert cli.main(["verify", str(originals / folder)]) == 0
        assert capsys.readouterr().out == f"{originals / folder}: the card says what the data beside it give.\n"


@pytest.mark.parametrize("change", TAMPERED)
def test_a_change_is_found_and_told(copies: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    kind, tamper, sentence = TAMPERED[change]
    tamper(copies)
    assert cli.main(["verify", str(copies / kind)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert sentence in told.err
    assert all(line.startswith("hf-proxadam: ") for line in told.err.splitlines())


def test_a_figure_by_another_matplotlib_is_not_compared(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_proxadam.report.style.DRAWN_BY", "matplotlib 99")
    wrong, open_questions = verify(copies / "model")
    assert wrong == []
    assert len(open_questions) == 4
    assert "figures/gradient_scales.png was drawn by matplotlib " in open_questions[0]


def test_many_differences_are_counted_and_not_listed(copies: Path) -> None:
    card = copies / "model" / "README.md"
    card.write_text("\n".join(f"{line}\n!" for line in card.read_text().splitlines()))
    wrong, _ = verify(copies / "model")
    assert len(wrong) == 6
    assert "more places" in wrong[-1]


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("nowhere", "'nowhere'; give it as ORG/NAME"),
        (".", "neither a study folder"),
        ("empty", "has no README.md: `hf-proxadam report"),
    ],
)
def test_what_can_not_be_verified_gets_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "empty", seeds=(0,), scales=False)
    assert cli.main(["verify", place]) == 2
    assert sentence in capsys.readouterr().err


def test_data_of_something_else_get_one_sentence(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copies / "study" / "report" / "runs.parquet"
    pd.read_parquet(path).drop(columns="optimizer").to_parquet(path)
    assert cli.main(["verify", str(copies / "study")]) == 2
    assert "are not those of a report" in capsys.readouterr().err
