"""The figures show the numbers that lie beside them, and stay readable with many modules and odd names."""

import io
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_proxadam.report import data, figures, figures_scales, scales, style
from hf_proxadam.scales import derived

from .conftest import OPTIMIZERS, write_scales, write_study


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with style.fixed():
        yield


def panels_of(figure: Figure) -> dict[str, list]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap by more than a pixel, and texts that leave the figure."""
    style.png(figure)
    renderer = figure.canvas.get_renderer()
    texts = list(figure.texts)
    texts += [text for legend in figure.legends for text in (*legend.get_texts(), legend.get_title())]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts] if axes.axison else []
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            places = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
            texts += [label for place, label in places if low <= place <= high]
    texts = [text for text in texts if text.get_visible() and text.get_text().strip()]
    shown = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    pairs = []
    for i, (name, box) in enumerate(shown):
        if box.x0 < -1 or box.y0 < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1:
            pairs.append((name, "leaves the figure"))
        for other, other_box in shown[i + 1 :]:
            wide = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            high = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            if wide > 1 and high > 1:
                pairs.append((name, other))
    return pairs


@pytest.fixture(scope="module")
def contents(study_folder: Path) -> data.Contents:
    return data.collect(study_folder)


def test_every_cell_of_the_heat_maps_carries_its_mean_test_error(contents: data.Contents) -> None:
    figure = figures.heat_maps(contents)
    means = contents.runs.groupby(["optimizer", "weight_decay", "learning_rate"])["test_accuracy"].mean()
    for label, axes in panels_of(figure).items():
        expected = 100 * (1 - means[label].unstack())
        assert len(axes.texts) == 4
        for text in axes.texts:
            x, y = (round(value) for value in text.get_position())
            assert float(text.get_text()) == pytest.approx(expected.iloc[y, x], abs=0.0051)
        outlines = [patch for patch in axes.patches if not patch.get_fill()]
        best = contents.chosen.set_index("optimizer").loc[label]
        column = list(expected.columns).index(best["learning_rate"])
        row = list(expected.index).index(best["weight_decay"])
        assert {(round(o.get_x() + 0.5), round(o.get_y() + 0.5)) for o in outlines} == {(column, row)}
    assert overlapping(figure) == []


def test_the_colours_of_all_heat_maps_mean_the_same(contents: data.Contents) -> None:
    figure = figures.heat_maps(contents)
    faces = {}
    for axes in panels_of(figure).values():
        for text in axes.texts:
            x, y = text.get_position()
            patch = next(p for p in axes.patches if p.get_fill() and (p.get_x(), p.get_y()) == (x - 0.5, y - 0.5))
            faces[float(text.get_text())] = patch.get_facecolor()
    errors = sorted(faces)
    assert len(errors) > 8
    brightness = [np.dot(faces[error][:3], (0.2126, 0.7152, 0.0722)) for error in errors]
    assert brightness == sorted(brightness)


def test_diverged_and_missing_cells_have_marks_of_their_own(tmp_path: Path) -> None:
    folder = write_study(
        tmp_path,
        rates=(0.001, 0.003, 0.01),
        scales=False,
        diverged=lambda cell: cell["learning_rate"] == 0.01 or (cell["learning_rate"] == 0.003 and cell["seed"] == 2),
        missing=lambda cell: cell["optimizer"] == "proxadam" and cell["weight_decay"] == 0.1,
    )
    figure = figures.heat_maps(data.collect(folder))
    texts = {
        tuple(round(value) for value in text.get_position()): text.get_text()
        for text in panels_of(figure)["proxadam"].texts
    }
    assert set(texts) == {(0, 0), (1, 0), (2, 0)}
    assert texts[2, 0] == "✕ 3/3"
    assert texts[1, 0].endswith("\n✕ 1/3")
    assert "✕" not in texts[0, 0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "chosen on validation data",
        "all runs diverged",
        "k/n: k of n runs diverged, mean of the others",
        "not finished",
    ]
    assert overlapping(figure) == []


def test_the_learning_curves_are_means_over_seeds_at_the_chosen_cells(contents: data.Contents) -> None:
    figure = figures.learning_curves(contents)
    loss_panel, accuracy_panel = figure.axes[:2]
    best = contents.chosen.set_index("optimizer").loc["proxadam"]
    runs = contents.runs.set_index("hash")
    own = runs[
        (runs["optimizer"] == "proxadam")
        & (runs["learning_rate"] == best["learning_rate"])
        & (runs["weight_decay"] == best["weight_decay"])
    ]
    curves = contents.curves[contents.curves["hash"].isin(own.index)]
    line = {line.get_label(): line for line in loss_panel.lines}["proxadam"]
    expected = curves.groupby("step")["train_loss"].mean()
    np.testing.assert_allclose(line.get_xdata(), expected.index)
    np.testing.assert_allclose(line.get_ydata(), expected)
    line = {line.get_label(): line for line in accuracy_panel.lines}["proxadam"]
    np.testing.assert_allclose(line.get_ydata(), 100 * curves.dropna().groupby("step")["validation_accuracy"].mean())
    assert overlapping(figure) == []


def test_the_module_maps_show_log2_of_the_recorded_rms(contents: data.Contents) -> None:
    figure = figures_scales.module_scales(contents.modules, "update")
    raw = contents.scales.to_pandas()
    raw = raw[(raw["hash"].map(contents.label_of) == "adamw_torch") & (raw["quantity"] == "update")]
    sums = raw.groupby(["module", "step"], sort=False)[["sum_squares", "finite"]].sum()
    expected = np.log2(np.sqrt(sums["sum_squares"] / sums["finite"])).unstack("step")
    image = panels_of(figure)["adamw_torch"].images[0].get_array()
    np.testing.assert_allclose(image, expected)
    assert overlapping(figure) == []


def modules_of(tmp_path: Path, modules: list[str], steps: list[int]) -> pd.DataFrame:
    write_scales(tmp_path, modules, steps)
    table = scales.load(tmp_path)
    assert table is not None
    return derived.by_module(table)


def test_a_hundred_modules_stay_readable_and_in_the_models_order(tmp_path: Path) -> None:
    parts = ("query", "key", "value", "a_rather_long_name_of_a_module_that_does_not_end.output.dense")
    names = [f"model.encoder.layer.{layer}.{part}" for layer in range(25) for part in parts] + ["classifier"]
    modules = modules_of(tmp_path, names, [10, 20])
    assert list(scales.by_step(modules, "gradient").index) == names
    figure = figures_scales.module_scales({"adam_l2": modules, "proxadam": modules}, "gradient")
    axes = panels_of(figure)["adam_l2"]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert 20 <= len(labels) <= 36
    assert labels[0] == "layer.0.query"
    assert max(map(len, labels)) <= 34
    assert overlapping(figure) == []


def test_a_module_that_never_moves_is_marked_and_not_drawn_as_small(tmp_path: Path) -> None:
    modules = modules_of(tmp_path, ["a", "b"], [1, 2])
    modules.loc[(modules["module"] == "b") & (modules["quantity"] == "update"), ["scale", "rms"]] = [np.nan, 0.0]
    figure = figures_scales.module_scales({"adam_l2": modules}, "update")
    image = panels_of(figure)["adam_l2"].images[0].get_array()
    assert np.ma.getmaskarray(image).tolist() == [[False, False], [True, True]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["exactly zero, or not finite"]


def test_the_ratio_maps_show_log2_of_update_to_weight(contents: data.Contents) -> None:
    figure = figures_scales.update_to_weight(contents.modules)
    raw = contents.scales.to_pandas()
    raw = raw[raw["hash"].map(contents.label_of) == "adamw_torch"]
    rms = {}
    for quantity in ("update", "weight"):
        rows = raw[raw["quantity"] == quantity]
        sums = rows.groupby(["module", "step"], sort=False)[["sum_squares", "finite"]].sum()
        rms[quantity] = np.sqrt(sums["sum_squares"] / sums["finite"]).unstack("step")
    image = panels_of(figure)["adamw_torch"].images[0].get_array()
    np.testing.assert_allclose(image, np.log2(rms["update"] / rms["weight"]))
    assert overlapping(figure) == []


def test_the_histograms_hold_all_coordinates_of_an_epoch_and_zeros_stand_apart(contents: data.Contents) -> None:
    figure = figures_scales.update_histograms(contents.modules)
    raw = contents.scales.to_pandas()
    raw = raw[(raw["hash"].map(contents.label_of) == "proxadam") & (raw["quantity"] == "update")]
    numbers = np.ceil(raw["epoch"])
    assert sorted(numbers.unique()) == [1, 2, 3, 4]
    columns = [figure.axes[i : i + 3] for i in range(0, len(figure.axes), 3)]
    row = next(row for row in columns if row[0].get_ylabel() == "proxadam")
    for axes, epoch in zip(row, (1, 3, 4), strict=True):
        assert axes.get_title().startswith(f"epoch {epoch}, ")
        rows = raw[numbers == epoch]
        *bars, zero = axes.patches
        assert zero.get_height() == pytest.approx(100 * rows["zeros"].sum() / rows["finite"].sum())
        assert zero.get_hatch()
        assert sum(bar.get_height() for bar in bars) + zero.get_height() == pytest.approx(100, abs=0.5)
        assert zero.get_x() + zero.get_width() < min(bar.get_x() for bar in bars)
        counts = np.sum(rows["histogram"].tolist(), axis=0)
        peak = max(bars, key=lambda bar: bar.get_height())
        assert peak.get_x() == np.argmax(counts) - 149
    assert overlapping(figure) == []


def test_without_epochs_the_histograms_are_of_the_whole_run(tmp_path: Path) -> None:
    modules = modules_of(tmp_path, ["a", "b"], [1, 2]).assign(epoch=np.nan)
    figure = figures_scales.update_histograms({"adam_l2": modules})
    assert len(figure.axes) == 1
    assert "epoch" not in figure.axes[0].get_title()
    counts, zero = scales.distribution(modules, "update")
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == pytest.approx(100 * (counts.sum() + zero))


def test_an_epoch_that_one_optimizer_did_not_reach_says_so(tmp_path: Path) -> None:
    modules = modules_of(tmp_path, ["a", "b"], [5, 15])
    figure = figures_scales.update_histograms({"adam_l2": modules, "short": modules[modules["step"] == 5]})
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert [("no records" in shown) for shown in texts] == [False, False, False, True]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_odd_names_are_drawn_letter_by_letter(tmp_path: Path) -> None:
    odd = ("adam_l2", "$\\frac{1}$", "two\nlines " + "W" * 60)
    folder = write_study(tmp_path, labels=odd, seeds=(0,), decays=(0.1,))
    contents = data.collect(folder)
    for draw in (figures.heat_maps, figures.learning_curves):
        assert overlapping(draw(contents)) == []
    figure = figures_scales.module_scales(contents.modules, "gradient")
    assert "$\\frac{1}$" in panels_of(figure)
    assert overlapping(figure) == []
    assert overlapping(figures_scales.update_histograms(contents.modules)) == []


def test_a_picture_says_what_drew_it_and_nothing_of_the_day(contents: data.Contents) -> None:
    image = Image.open(io.BytesIO(style.png(figures.learning_curves(contents))))
    assert set(image.info) <= {"dpi", "Software"}
    assert image.info["Software"] == f"matplotlib {matplotlib.__version__}"  # `verify` compares pictures of one version
    assert image.width == style.WIDTH * style.DPI


def test_every_optimizer_has_a_line_of_its_own() -> None:
    lines = [tuple(str(value) for value in (style.line(i)["color"], style.line(i)["linestyle"])) for i in range(14)]
    assert len(set(lines)) == 14
    assert len(OPTIMIZERS) < 14
