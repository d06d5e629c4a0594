"""kill -9 of a whole script, again and again: resumed each time, it ends as if nothing had happened."""

import json
import os
import random
import subprocess
import sys
import time

import pytest

from hf_proxadam import scales
from tests.script_runs import SCRIPTS, as_arguments
from tests.tasks.glue_data import write_bert, write_glue
from tests.tasks.image_files import write_digits

COMMON = {
    "optim": "proxadam_scale_free",
    "learning_rate": 2e-3,
    "max_steps": 40,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 20,
    "save_strategy": "steps",
    "save_steps": 5,
    "save_total_limit": 3,
    "record_scales_every": 2,
    "logging_steps": 5,
    "max_grad_norm": 0,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}
VIT = "patch_size=2,hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64"


def options_of(script, folder):
    if script == "run_glue":
        write_glue(folder / "data")
        write_bert(folder / "bert")
        return {"task_name": "mrpc", "dataset_path": folder / "data", "model_name_or_path": folder / "bert"}
    data = {"dataset_path": write_digits(folder / "digits"), "model_type": "vit", "config_overrides": VIT}
    return {**data, "random_crop": "padded", "random_flip": True, "mixup_alpha": 0.3}


def start(script, options, folder):
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *as_arguments({**COMMON, **options})]
    caches = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **caches, "PYTHONPATH": str(SCRIPTS.parent)}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def progress(out):
    """The last checkpoint whose state was written."""
    return max((int(f.parent.name.split("-")[1]) for f in out.glob("checkpoint-*/trainer_state.json")), default=0)


def what_it_left(out):
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    timing = ("runtime", "per_second", "flos")
    results = json.loads((out / "eval_results.json").read_text())
    table = (
        scales.load(out / "scales").to_pandas().sort_values(["step", "quantity", "parameter"]).reset_index(drop=True)
    )
    return (
        (out / "model.safetensors").read_bytes(),
        {name: value for name, value in results.items() if not name.endswith(timing)},
        # The last line is the whole run's: its losses are averaged over what the last process saw.
        [{k: v for k, v in line.items() if not k.endswith(timing)} for line in history[:-1]],
        table,
    )


@pytest.mark.slow
@pytest.mark.parametrize("script", ["run_glue", "run_image_classification"])
def test_a_killed_run_that_is_resumed_ends_as_an_undisturbed_one(script, tmp_path):
    options = {**options_of(script, tmp_path), "output_dir": tmp_path / "whole"}
    assert start(script, options, tmp_path).wait(300) == 0, (tmp_path / "log").read_text()[-2000:]
    rng = random.Random(0)
    out = options["output_dir"] = tmp_path / "killed"
    kills, reached = 0, 0
    while True:
        process = start(script, {**options, "resume_from_checkpoint": "last" if kills else None}, tmp_path)
        deadline = time.monotonic() + 300
        while process.poll() is None and (kills == 4 or progress(out) <= reached):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if process.poll() is not None:
            break
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.wait()
        kills, reached = kills + 1, progress(out)
    assert process.returncode == 0, (tmp_path / "log").read_text()[-2000:]
    assert kills >= 2
    (*whole, whole_scales), (*killed, killed_scales) = what_it_left(tmp_path / "whole"), what_it_left(out)
    assert killed == whole
    assert whole_scales.equals(killed_scales)
