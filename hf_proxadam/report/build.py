"""Makes a report: data first, then figures and card from the data that lie beside them."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from hf_proxadam import atomic
from hf_proxadam.report import card, data, figures, figures_scales, gap, model_card, model_data, style


def make(folder: Path) -> Path:
    """Make the report of the study, or of the fine-tuned model, in `folder`; see `hf_proxadam.report.make`."""
    if model_data.is_model(Path(folder)):
        return write(Path(folder))
    report = Path(folder) / "report"
    data.write(data.collect(Path(folder)), report)
    return write(report)


def write(report: Path) -> Path:
    """Write card and figures from the data that lie in `report`, beside which they go."""
    text, drawn = compute(report)
    for name, image in drawn.items():
        atomic.write_bytes(report / "figures" / name, image)
    for name in card.CAPTIONS.keys() - drawn.keys():
        (report / "figures" / name).unlink(missing_ok=True)
    atomic.write_text(report / "README.md", text)
    return report / "README.md"


def compute(report: Path) -> tuple[str, dict[str, bytes]]:
    """Compute the card and its figures (file name to PNG, in the card's order) from the data that lie in `report`."""
    if not (report / data.STUDY).is_file():
        model = model_data.read(report)
        drawn = _png(_scale_figures(model.modules))
        return model_card.make_card(model, list(drawn)), drawn
    contents = data.read(report)
    drawn = draw(contents)
    return card.make_card(contents, list(drawn)), drawn


def draw(contents: data.Contents) -> dict[str, bytes]:
    """Draw every figure of a study that there are data for: file name to PNG, in the card's order."""
    with style.fixed():
        results = {
            "test_error.png": figures.heat_maps(contents.by_label),
            "learning_curves.png": figures.learning_curves(contents),
        }
        against_spread = gap.gap_against_spread(contents)
        if against_spread:
            results["gap_against_spread.png"] = against_spread
    return _png(results) | _png(_scale_figures(contents.by_label.modules))


def _scale_figures(modules: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    if not modules:
        return {}
    with style.fixed():
        return {
            "gradient_scales.png": figures_scales.module_scales(modules, "gradient"),
            "update_scales.png": figures_scales.module_scales(modules, "update"),
            "update_to_weight.png": figures_scales.update_to_weight(modules),
            "update_histograms.png": figures_scales.update_histograms(modules),
        }


def _png(drawn: dict[str, Figure]) -> dict[str, bytes]:
    with style.fixed():
        return {name: style.png(figure) for name, figure in drawn.items()}
