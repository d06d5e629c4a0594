"""Reports made from files alone: figures, tables and a card for a finished study, a card for a fine-tuned model."""

from pathlib import Path


def make(folder: Path) -> Path:
    """Make, or make again, the report of a study or of a fine-tuned model: the same files give the same bytes.

    For a study, FOLDER/report/ then holds `README.md` (the card, with the Hub's metadata), `figures/*.png` and the data
    that every number and figure in the card is computed from: `runs.parquet` (also as `runs.csv`), `curves.parquet`,
    `scales.parquet` (where gradient scales were recorded) and `study.json`.

    For a model, `README.md` and `figures/*.png` go beside the model, computed from `run.json`, `all_results.json`,
    `trainer_state.json` and `scales/*.parquet`.

    Args:
        folder: a study folder, as `hf-proxadam compare` leaves it (cells may still be missing, and the card then says
            so), or the output folder of a fine-tuning script.

    Returns:
        The card's path.

    Raises:
        ValueError: `folder` is neither, one of its files can't be read, or no cell is finished yet.
    """
    # Imported late: matplotlib and scipy take a second that `import hf_proxadam.report` needn't cost.
    from hf_proxadam.report import build

    return build.make(folder)
