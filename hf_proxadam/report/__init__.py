"""The report on a finished study: figures, tables and a card, made from the study folder's files alone."""

from pathlib import Path


def make(folder: Path) -> Path:
    """Make, or make again, the report of a study: the same files give the same bytes.

    FOLDER/report/ then holds `README.md` (the card, with the Hub's metadata), `figures/*.png` and the data that every
    number and figure in the card is computed from: `runs.parquet` (also as `runs.csv`), `curves.parquet`,
    `scales.parquet` (where gradient scales were recorded) and `study.json`.

    Args:
        folder: a study folder, as `hf-proxadam compare` leaves it; cells may still be missing, and the card then says
            so.

    Returns:
        The card's path, FOLDER/report/README.md.

    Raises:
        ValueError: `folder` is no study folder, one of its files can't be read, or no cell is finished yet.
    """
    # Imported late: matplotlib and scipy take a second that `import hf_proxadam.report` needn't cost.
    from hf_proxadam.report import build

    return build.make(folder)
