"""Time of 16 small cells through `hf-proxadam compare`, and as 16 separate launches of the script that trains one.

    python scripts/benchmarks/study.py [--cores 1]

Both train the same small ViTs on scikit-learn's digits, written as Parquet: two optimizers x two learning rates x two
weight decays x two seeds, evaluated at the end on validation and test data, gradient scales recorded. On more than one
core both run as many at a time. The ratio of the two times is printed, with the largest difference of a test accuracy.
"""

import argparse
import concurrent.futures
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import yaml
from PIL import Image
from sklearn.datasets import load_digits

SCRIPTS = Path(__file__).parents[1]
TRAIN = 1200
EPOCHS = 4
MODEL = {
    "model_type": "vit",
    "config_overrides": "patch_size=2,hidden_size=48,num_hidden_layers=2,num_attention_heads=4,intermediate_size=96",
    "validation_fraction": 0.2,
}
SHARED = {
    "num_train_epochs": EPOCHS,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 360,
    "lr_scheduler_type": "linear",
    "logging_steps": 10,
}
GRID = {"optim": ["adam_l2", "proxadam"], "learning_rate": [1e-3, 4e-3], "weight_decay": [1e-3, 1.0], "seed": [0, 1]}
RECORD_SCALES_EVERY = 10


def write_digits(folder: Path) -> None:
    digits = load_digits()
    images = []
    for pixels in digits.images:
        buffer = io.BytesIO()
        Image.fromarray((pixels / 16 * 255).astype(np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for split, part in {"train": slice(TRAIN), "test": slice(TRAIN, None)}.items():
        rows = {"image": images[part], "label": digits.target[part].tolist()}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")


def run_study(data: Path, folder: Path, cores: int, environment: dict[str, str]) -> float:
    study = {
        "name": "benchmark",
        "task": "images",
        "model": {"dataset_path": str(data), **MODEL},
        "optimizers": [{"name": name} for name in GRID["optim"]],
        **{f"{name}s": values for name, values in GRID.items() if name != "optim"},
        # As the script does it, on the way nothing is evaluated.
        "training": {**SHARED, "eval_steps": 10**6, "use_cpu": True},
        "record_scales_every": RECORD_SCALES_EVERY,
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(study))
    begin = time.perf_counter()
    command = [sys.executable, SCRIPTS / "compare.py", path, "--output_dir", folder, "--workers", str(cores)]
    subprocess.run(command, env=environment, check=True)
    return time.perf_counter() - begin


def run_scripts(data: Path, folder: Path, cores: int, environment: dict[str, str]) -> float:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", SCRIPTS / "run_image_classification.py", "--use_cpu"]
    fixed = {
        "dataset_path": data,
        **MODEL,
        **SHARED,
        "max_grad_norm": 0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "record_scales_every": RECORD_SCALES_EVERY,
    }

    def train(point: tuple[object, ...]) -> None:
        options = {**fixed, **dict(zip(GRID, point, strict=True)), "output_dir": folder / "-".join(map(str, point))}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        subprocess.run([*launch, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)

    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        list(pool.map(train, itertools.product(*GRID.values())))
    return time.perf_counter() - begin


def largest_difference(study: Path, scripts: Path) -> float:
    differences = []
    for path in study.glob("cells/*/result.json"):
        result = json.loads(path.read_text())
        cell = result["cell"]
        name = "-".join(str(cell[key]) for key in GRID)
        alone = json.loads((scripts / name / "all_results.json").read_text())
        differences.append(abs(result["test"]["accuracy"] - alone["test_accuracy"]))
    assert len(differences) == 16
    return max(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a study against separate launches.")
    parser.add_argument("--cores", type=int, default=1, help="cells, or launches, at a time")
    cores = parser.parse_args().cores
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")]),
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "data").mkdir()
        write_digits(folder / "data")
        environment["HF_DATASETS_CACHE"] = str(folder / "cache")
        study = run_study(folder / "data", folder / "study", cores, environment)
        scripts = run_scripts(folder / "data", folder / "scripts", cores, environment)
        print(f"16 cells through compare, with report: {study:.0f} s; as 16 launches: {scripts:.0f} s")
        print(f"compare takes {study / scripts:.2f} of the time of the launches")
        print(f"largest difference of a test accuracy: {largest_difference(folder / 'study', folder / 'scripts'):.4f}")


if __name__ == "__main__":
    main()
