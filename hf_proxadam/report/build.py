"""Makes a report: data first, then figures and card from the data that lie beside them."""

from pathlib import Path

from matplotlib.figure import Figure

from hf_proxadam import atomic
from hf_proxadam.report import data, figures, figures_scales, style
from hf_proxadam.report.card import make_card


def make(folder: Path) -> Path:
    """Make the report of the study in `folder`; see `hf_proxadam.report.make`."""
    report = Path(folder) / "report"
    data.write(data.collect(Path(folder)), report)
    contents = data.read(report)
    drawn = draw(contents)
    for name, image in drawn.items():
        atomic.write_bytes(report / "figures" / name, image)
    for stale in set((report / "figures").glob("*.png")) - {report / "figures" / name for name in drawn}:
        stale.unlink()
    atomic.write_text(report / "README.md", make_card(contents, list(drawn)))
    return report / "README.md"


def draw(contents: data.Contents) -> dict[str, bytes]:
    """Draw every figure that there are data for: file name to PNG, in the card's order."""
    with style.fixed():
        drawn: dict[str, Figure] = {
            "test_error.png": figures.heat_maps(contents),
            "learning_curves.png": figures.learning_curves(contents),
        }
        if contents.modules:
            drawn["gradient_scales.png"] = figures_scales.module_scales(contents.modules, "gradient")
            drawn["update_scales.png"] = figures_scales.module_scales(contents.modules, "update")
            drawn["update_to_weight.png"] = figures_scales.update_to_weight(contents.modules)
            drawn["update_histograms.png"] = figures_scales.update_histograms(contents.modules)
        return {name: style.png(figure) for name, figure in drawn.items()}
