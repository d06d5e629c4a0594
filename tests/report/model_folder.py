"""The output folder of a fine-tuning, made in milliseconds: what scripts/run_glue.py leaves, without a training."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from .conftest import MODULES, write_scales

RUN: dict[str, Any] = {
    "command": ["run_glue.py", "--model_name_or_path=/home/ada/models/bert", "--dataset_path", "/data/ada/glue"],
    "environment": {"torch": "2.13.0", "git revision": "none (not run from a git clone)"},
    "script": {"dataset_path": "/data/ada/glue"},
    "task": {
        "name": "stsb",
        "pipeline_tag": "text-classification",
        "metrics": ["pearson", "spearmanr"],
        "dataset": {
            "name": "GLUE stsb",
            "id": "nyu-mll/glue",
            "config": "stsb",
            "local": False,
            "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
            "sha256": None,
        },
        "splits": {
            "train": {"of": "rest of train", "examples": 5174},
            "validation": {"of": "part of train", "examples": 575},
            "test": {"of": "validation", "examples": 1500},
        },
    },
    "base_model": {"name": "org/bert", "id": "org/bert", "revision": "0" * 40, "license": "mit"},
    "training": {"optim": "proxadam", "learning_rate": 1e-4, "weight_decay": 0.01, "max_grad_norm": 0.0, "seed": 7},
    "optimizer": {
        "class": "hf_proxadam.optim.proxadam.ProxAdam",
        "defaults": {"lr": 1e-4, "weight_decay": 0.5, "eps": 1e-8, "amsgrad": False},
    },
}
RESULTS = {
    "eval_pearson": 0.8512,
    "eval_spearmanr": 0.8476,
    "eval_loss": 0.61,
    "test_pearson": 0.8634,
    "test_spearmanr": 0.8598,
    "test_loss": 0.58,
    "train_runtime": 125.0,
    "train_samples_per_second": 41.4,
}


def run_with(**parts: dict[str, Any]) -> dict[str, Any]:
    """The record of a run, with other entries in some of its parts."""
    run = copy.deepcopy(RUN)
    for part, entries in parts.items():
        run[part] = {**run[part], **entries}
    return run


def write_model(
    folder: Path, run: dict[str, Any] | None = None, seed: int = 0, results: dict[str, float] | None = None
) -> Path:
    """Write the folder, with what must not be published in it, too; returns FOLDER."""
    (folder / "checkpoint-10").mkdir(parents=True)
    (folder / "checkpoint-10" / "optimizer.pt").write_bytes(b"pickle")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "notes.md").write_text("private")
    save_file({"weight": np.random.default_rng(seed).normal(size=1000)}, folder / "model.safetensors")
    config = {"model_type": "bert", "_name_or_path": "/home/ada/models/bert"}
    state = {
        "best_model_checkpoint": "/home/ada/out/checkpoint-10",
        "log_history": [
            {"step": step, "epoch": step / 10, **({"eval_loss": 3 / step} if step % 10 == 0 else {"loss": 4 / step})}
            for step in range(2, 41, 2)
        ],
    }
    tokenizer = {"model": {"vocab": {"/home/ada": 0, "stone": 1}}}
    contents = {"run": run or RUN, "all_results": results or RESULTS, "config": config, "trainer_state": state}
    for name, content in {**contents, "tokenizer": tokenizer, "test_results": {"test_pearson": 0.8634}}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    write_scales(folder / "scales", MODULES, [10, 20, 30], seed=seed)
    return folder
