"""A study folder by the contract, made in milliseconds: no training, but numbers of the right kind."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_proxadam.scales.store import Store
from hf_proxadam.study import store

OPTIMIZERS = ("adam_l2", "adamw_torch", "proxadam", "adamw_scale_free")
MODULES = [
    f"vit.encoder.layer.{layer}.{part}"
    for layer in range(2)
    for part in ("attention.query", "attention.key", "mlp.fc1")
]
BINS, MIN_EXPONENT = 278, -149


def accuracy(optimizer: int, rate: int, decay: int, seed: int, split: str) -> float:
    """What a run scores: the first learning rate is the better one, later optimizers are better, seeds add noise."""
    noise = np.random.default_rng((optimizer, rate, decay, seed, split == "test")).normal(0, 0.002)
    return round(float(0.9 + 0.01 * optimizer - 0.05 * rate + 0.004 * decay + noise), 6)


def magnitudes(rng: np.random.Generator, quantity: str, module: int, numel: int) -> np.ndarray:
    """Absolute values of one parameter's gradient, update or weight, some of them zero."""
    values = 2.0 ** rng.normal(-9 - 1.5 * module - 4 * (quantity == "update"), 2.0, numel)
    values[: numel // 10 if quantity != "weight" else 0] = 0
    return values


def statistics_of(values: np.ndarray) -> dict[str, Any]:
    """The columns of the scales for one tensor, by the definitions of the contract."""
    finite = values[np.isfinite(values)]
    used = finite[finite > 0]
    bins = np.clip(np.floor(np.log2(used)).astype(int) - MIN_EXPONENT, 0, BINS - 1)
    return {
        "numel": len(values),
        "rms": float(np.sqrt(np.mean(finite**2))) if len(finite) else None,
        "min_nonzero": float(used.min()) if len(used) else None,
        "max": float(finite.max()) if len(finite) else None,
        "zeros": len(finite) - len(used),
        "nonfinite": len(values) - len(finite),
        "sum_squares": float(np.sum(finite**2)),
        "finite": len(finite),
        "histogram": np.bincount(bins, minlength=BINS).astype(float).tolist(),
        "sampled_share": 1.0,
        "clip_factor": 1.0,
    }


def write_scales(folder: Path, modules: list[str], steps: list[int], seed: int = 0) -> None:
    """Write one run's scales."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "step": step,
            "epoch": step / 10,
            "module": module,
            "parameter": f"{module}.{leaf}",
            "quantity": quantity,
            "learning_rate": 0.001,
            **statistics_of(
                np.zeros(8)
                if (i, quantity, leaf) == (1, "update", "weight") and step == steps[0]
                else magnitudes(rng, quantity, i % 7, 64 if leaf == "weight" else 8)
            ),
        }
        for step in steps
        for i, module in enumerate(modules)
        for leaf in ("weight", "bias")
        for quantity in ("gradient", "update", "weight")
    ]
    Store(folder, run=str(folder)).write({key: [row[key] for row in rows] for key in rows[0]})


def write_study(
    folder: Path,
    *,
    labels: tuple[str, ...] = OPTIMIZERS,
    rates: tuple[float, ...] = (0.001, 0.003),
    decays: tuple[float, ...] = (0.01, 0.1),
    seeds: tuple[int, ...] = (0, 1, 2),
    diverged: Callable[[dict[str, Any]], bool] = lambda cell: False,
    missing: Callable[[dict[str, Any]], bool] = lambda cell: False,
    score: Callable[..., float] = accuracy,
    scales: bool = True,
    modules: list[str] = MODULES,
    steps: tuple[int, ...] = (1, 11, 21, 31),
    name: str = "digits",
    **study: Any,
) -> Path:
    """Write a study folder: every optimizer x rate x decay x seed, the result of each by `score`."""
    grid = list(itertools.product(enumerate(labels), enumerate(rates), enumerate(decays), seeds))
    hashes = [f"{i:016x}" for i in range(len(grid))]
    names = dict(zip(labels, OPTIMIZERS, strict=False))
    spec = {
        "name": name,
        "task": "digits",
        "model": {"hidden_size": 32, "num_layers": 2},
        "optimizers": [{"name": names[label], "optim_args": None, "label": label} for label in labels],
        "learning_rates": list(rates),
        "weight_decays": list(decays),
        "seeds": list(seeds),
        "training": {"num_train_epochs": 3, "lr_scheduler_type": "cosine"},
        "selection_metric": "accuracy",
        "greater_is_better": True,
        "record_scales_every": 10,
        "max_grad_norm": 0.0,
        **study,
    }
    store.save_study(folder, spec, hashes, ["/home/ada/.venv/bin/hf-proxadam", "compare", "study.yaml"])
    for cell_hash, ((o, label), (r, rate), (d, decay), seed) in zip(hashes, grid, strict=True):
        cell = {
            "optimizer": label,
            "optim": names[label],
            "optim_args": None,
            "learning_rate": rate,
            "weight_decay": decay,
            "seed": seed,
        }
        if missing(cell):
            continue
        bad = diverged(cell)
        scores = {split: {"accuracy": score(o, r, d, seed, split), "loss": 0.3} for split in ("validation", "test")}
        curve = [
            {
                "step": step,
                "epoch": step / 10,
                "learning_rate": rate,
                "train_loss": 2.3 / (1 + step * (1 + 0.2 * o)) + 0.01 * seed,
            }
            for step in range(1, 12 if bad else 41, 2)
        ]
        for i, point in enumerate(curve):
            if i % 5 == 4:
                point |= {"validation_loss": 1 / (i + 1), "validation_accuracy": 0.9 - 0.5 / (i + 1 + o) - 0.01 * seed}
        store.save_result(
            folder,
            {
                "hash": cell_hash,
                "cell": cell,
                "status": "diverged" if bad else "finished",
                "validation": None if bad else scores["validation"],
                "test": None if bad else scores["test"],
                "curve": curve,
                "optimizer": {
                    "class": f"hf_proxadam.optim.{names[label]}",
                    "defaults": {"lr": rate, "betas": [0.9, 0.999]},
                },
                "timing": {"train_seconds": 2.5 + 0.1 * o, "samples_per_second": 1000.0},
            },
        )
        if scales and seed == seeds[0]:
            write_scales(store.scales_folder(folder, cell_hash), modules, list(steps), seed=o)
    return folder


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study of 4 x 2 x 2 x 3 runs, with scales."""
    return write_study(tmp_path_factory.mktemp("study"))
