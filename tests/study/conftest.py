import copy
from typing import Any

import pytest
import torch

from hf_proxadam.study.parsing import Problems
from hf_proxadam.study.spec import Study, parse_study

TINY: dict[str, Any] = {
    "name": "tiny",
    "task": "digits",
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "patch_size": 4,
        "max_train_samples": 128,
    },
    "optimizers": [{"name": "adam_l2"}, {"name": "proxadam"}],
    "learning_rates": [3e-3],
    "weight_decays": [0.1],
    "seeds": [0, 1],
    "training": {
        "max_steps": 12,
        "per_device_train_batch_size": 16,
        "logging_steps": 4,
        "eval_steps": 6,
        "use_cpu": True,
    },
    "record_scales_every": 4,
    "retries": 1,
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    """What a study file of four cells that take a second each says."""
    return copy.deepcopy(TINY)


@pytest.fixture
def make_study():
    def make(data: dict[str, Any]) -> Study:
        problems = Problems("test")
        study = parse_study(data, problems)
        problems.raise_if_any()
        assert study is not None
        return study

    return make


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
