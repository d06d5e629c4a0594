"""GLUE-shaped data and a tiny random BERT, both made here: what is right can be read off one word."""

import random
from pathlib import Path

import pandas as pd
from transformers import BertConfig, BertModel, BertTokenizer, set_seed

WORDS = ("cat", "dog", "bird", "house", "river", "stone", "sees", "likes", "a", "the")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def sentence(rng: random.Random, *more: str) -> str:
    words = [*rng.choices(WORDS, k=rng.randint(3, 12)), *more]
    rng.shuffle(words)
    return " ".join(words)


def pairs(rows: int, seed: int) -> pd.DataFrame:
    """Sentence pairs as in mrpc; they are paraphrases where the word `same` stands in the second one."""
    rng = random.Random(seed)
    labels = [int(rng.random() < 0.6) for _ in range(rows)]
    return pd.DataFrame(
        {
            "sentence1": [sentence(rng) for _ in labels],
            "sentence2": [sentence(rng, "same" if label else "other") for label in labels],
            "label": labels,
            "idx": range(rows),
        }
    )


def write_glue(folder: Path, task: str = "mrpc", suffix: str = "parquet") -> Path:
    """Write FOLDER/<task>/train*, validation* with 96 and 48 pairs; returns FOLDER."""
    (folder / task).mkdir(parents=True)
    for seed, (split, rows) in enumerate({"train": 96, "validation": 48}.items()):
        table, path = pairs(rows, seed), folder / task / f"{split}-00000-of-00001.{suffix}"
        if suffix == "parquet":
            table.to_parquet(path, index=False)
        elif suffix == "csv":
            table.to_csv(path, index=False)
        else:
            table.to_json(path, orient="records", lines=True)
    return folder


def write_bert(folder: Path) -> Path:
    """Save a BERT of two small layers with random weights and its tokenizer; returns FOLDER."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS, "same", "other"))}
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
