"""GLUE-shaped data and a tiny random BERT, both made here: what is right can be read off one word."""

import random
from pathlib import Path

import pandas as pd
from transformers import BertConfig, BertModel, BertTokenizer, set_seed

from hf_proxadam.tasks.glue_data import GLUE

WORDS = ("cat", "dog", "bird", "house", "river", "stone", "sees", "likes", "a", "the")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def sentence(rng: random.Random, *more: str) -> str:
    words = [*rng.choices(WORDS, k=rng.randint(3, 12)), *more]
    rng.shuffle(words)
    return " ".join(words)


def pairs(rows: int, seed: int, signs: tuple[str, ...] = ("other", "same")) -> pd.DataFrame:
    """Sentence pairs as in mrpc: the label is the number of the one word of `signs` that the second one holds."""
    rng = random.Random(seed)
    labels = [min(int(rng.random() / 0.4), len(signs) - 1) for _ in range(rows)]
    return pd.DataFrame(
        {
            "sentence1": [sentence(rng) for _ in labels],
            "sentence2": [sentence(rng, signs[label]) for label in labels],
            "label": labels,
            "idx": range(rows),
        }
    )


def write_glue(folder: Path, task: str = "mrpc", suffix: str = "parquet", splits: dict[str, int] | None = None) -> Path:
    """Write FOLDER/<task>/train*, validation* (and more, by `splits`) with 96 and 48 pairs; returns FOLDER.

    The labels of splits named test are -1, as the benchmark has them.
    """
    (folder / task).mkdir(parents=True)
    dataset = GLUE[task]
    signs = ("other", "same", "maybe")[: max(2, dataset.labels)]
    for seed, (split, rows) in enumerate((splits or {"train": 96, "validation": 48}).items()):
        table = pairs(rows, seed, signs).rename(
            columns=dict(zip(("sentence1", "sentence2"), dataset.columns, strict=True))
        )
        if split.startswith("test"):
            table["label"] = -1
        path = folder / task / f"{split}-00000-of-00001.{suffix}"
        if suffix == "parquet":
            table.to_parquet(path, index=False)
        elif suffix == "csv":
            table.to_csv(path, index=False)
        else:
            table.to_json(path, orient="records", lines=True)
    return folder


def write_bert(folder: Path) -> Path:
    """Save a BERT of two small layers with random weights and its tokenizer; returns FOLDER."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS, "same", "other", "maybe"))}
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder
