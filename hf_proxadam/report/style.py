"""How every figure looks, whatever the machine's own matplotlib settings are, and how it becomes a file."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from hf_proxadam.report.text import shorten, visible

WIDTH = 10.0  # inches; a card shows it about 800 pixels wide, so that 10 pt text stays readable there
DPI = 150

# Okabe and Ito's colours, which people with any kind of colour blindness can tell apart; line styles help too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
DRAWN_BY = f"matplotlib {matplotlib.__version__}"
MARK = "#D55E00"  # what must not be overlooked
MISSING = "#D9D9D9"
SEQUENTIAL = "viridis"

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "figure.dpi": DPI,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.05,
    "text.parse_math": False,  # a "$" in a name is a "$"
    "hatch.linewidth": 0.6,
}


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """Draw with this module's settings alone; matplotlib's are put back afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def line(index: int) -> dict[str, Any]:
    """Colour, dashes and width of the optimizer at `index` in the study's order.

    Later lines are drawn over earlier ones and are thinner, so that all are seen where they coincide.
    """
    dashes = _DASHES[(index % len(_COLOURS) + index // len(_COLOURS)) % len(_DASHES)]
    return {"color": colour(index), "linestyle": dashes, "linewidth": max(1.4, 3.0 - 0.5 * index)}


def colour(index: int) -> str:
    """Colour of the optimizer at `index` in the study's order."""
    return _COLOURS[index % len(_COLOURS)]


def grid(count: int, columns: int) -> tuple[int, int]:
    """Rows and columns for `count` panels, with no more than `columns` in a row and rows as even as can be."""
    rows = -(-count // max(1, columns))
    return rows, -(-count // rows)


def columns(figure: Figure, letters: int, count: int) -> int:
    """How many of a legend's `count` entries, of `letters` letters in all, go in one row."""
    room = figure.get_size_inches()[0] * 11.5  # letters of the legend's size per inch, on average
    return count if letters <= room else max(1, min(count - 1, int(room * count / letters)))


def thin(count: int, at_most: int) -> tuple[range, int]:
    """Which of `count` ticks to label so that there are no more than `at_most`, and every how many that is."""
    every = -(-count // at_most)
    return range(0, count, every), every


def fit(text: str, inches: float, size: float = 11) -> str:
    """Make `text` visible and cut it to `inches` at `size` points."""
    shown, ruler, font = visible(text), TextToPath(), FontProperties(family="DejaVu Sans", size=size)
    for length in range(len(shown), 1, -1):
        cut = shorten(shown, length)
        if ruler.get_text_width_height_descent(cut, font, ismath=False)[0] <= 72 * inches:
            return cut
    return "…"


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a colour scale that is not empty even where all values are equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def png(figure: Figure) -> bytes:
    """Render `figure`; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    # Which matplotlib drew it: another version may draw the same data with other pixels.
    figure.savefig(buffer, format="png", metadata={"Software": DRAWN_BY})
    return buffer.getvalue()
