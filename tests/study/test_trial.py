import dataclasses
import json
import math
import types

import pytest
import torch

from hf_proxadam import scales
from hf_proxadam.optim import ProxAdam
from hf_proxadam.study import store
from hf_proxadam.study.cells import grid
from hf_proxadam.study.optimizers import describe_optimizer
from hf_proxadam.study.trial import run_cell
from tests.tasks.image_files import write_digits

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cell(tiny, make_study):
    return grid(make_study(tiny))[1]


def without_timing(result):
    return {key: value for key, value in result.items() if key != "timing"}


def test_the_result_is_complete_and_of_the_live_optimizer(cell, tmp_path):
    result = run_cell(cell, tmp_path)
    assert result["status"] == "finished"
    assert set(result["validation"]) == set(result["test"]) == {"accuracy", "loss"}
    assert all(math.isfinite(value) for value in (*result["validation"].values(), *result["test"].values()))
    assert result["optimizer"]["class"] == "hf_proxadam.optim.proxadam.ProxAdam"
    assert result["optimizer"]["defaults"]["lr"] == cell.learning_rate
    assert result["optimizer"]["defaults"]["betas"] == [0.9, 0.999]
    assert [point["step"] for point in result["curve"]] == [4, 6, 8, 12]
    last = result["curve"][-1]
    assert set(last) == {"step", "epoch", "learning_rate", "train_loss", "validation_loss", "validation_accuracy"}
    assert last["validation_accuracy"] == result["validation"]["accuracy"]
    json.dumps(result, allow_nan=False)


def test_images_are_a_task_of_studies(tiny, make_study, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tiny["task"] = "images"
    tiny["model"] = {
        "dataset_path": str(write_digits(tmp_path / "digits", 60, 30)),
        "model_name_or_path": "resnet20",
        "config_overrides": "depth=8,width=4",
        "normalization": "none",
        "random_crop": "padded",
        "random_crop_padding": 1,
        "mixup_alpha": 0.2,
        "validation_fraction": 0.2,
    }
    cell = grid(make_study(tiny))[1]
    result = run_cell(cell, tmp_path)
    assert result["status"] == "finished"
    assert set(result["test"]) == {"accuracy", "loss"}
    assert without_timing(run_cell(cell, tmp_path)) == without_timing(result)


def test_the_weight_decay_is_told_of_the_parameters_that_were_under_it(cell, tmp_path):
    """The class was made with its own default; what counts is what the Trainer wrote into the groups."""
    optimizer = run_cell(dataclasses.replace(cell, weight_decay=0.3), tmp_path)["optimizer"]
    assert optimizer["defaults"]["weight_decay"] != 0.3
    decayed, others = optimizer["groups"]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert decayed["lr"] == others["lr"] == cell.learning_rate, "the peak, not what the schedule ended with"
    assert decayed["parameters"] > others["parameters"] > 0


def test_a_multiplied_loss_changes_adam_l2_and_no_scale_free_optimizer(cell, tmp_path):
    def curves(name):
        changed = dataclasses.replace(cell, optim=name, weight_decay=1.0)
        multiplied = dataclasses.replace(changed, loss_multiplier=1024.0)
        return [run_cell(one, tmp_path)["curve"] for one in (changed, multiplied)]

    plain, multiplied = curves("adamw_scale_free")
    assert multiplied == plain, "reported losses, too, are those before the multiplication"
    plain, multiplied = curves("adam_l2")
    assert multiplied != plain


def test_only_the_gradient_scales_are_written(cell, tmp_path):
    run_cell(cell, tmp_path)
    folder = store.scales_folder(tmp_path, cell.hash)
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {folder}
    table = scales.load(folder).to_pandas()
    assert sorted(table["step"].unique()) == [4, 8, 12]
    assert (table["clip_factor"] == 1.0).all(), "nothing is clipped in a comparison"


def test_what_ran_before_has_no_influence(cell, tmp_path):
    first = run_cell(cell, tmp_path)
    other = run_cell(dataclasses.replace(cell, seed=5, optim="adamw_torch"), tmp_path)
    assert without_timing(other) != without_timing(first)
    assert without_timing(run_cell(cell, tmp_path)) == without_timing(first)


def test_recording_scales_does_not_change_the_training(cell, tmp_path):
    with_scales = run_cell(cell, tmp_path)
    without = run_cell(dataclasses.replace(cell, record_scales_every=0), tmp_path)
    assert with_scales["curve"] == without["curve"]
    assert not store.scales_folder(tmp_path, without["hash"]).exists()


def test_seeds_are_paired_between_optimizers(cell, tmp_path):
    """Same seed, same first weights and the same batches: the first loss does not know the optimizer."""
    training = dataclasses.replace(cell.training, logging_steps=1.0, max_steps=1)
    losses = {}
    for name, seed in (("adam_l2", 0), ("proxadam", 0), ("proxadam", 1)):
        other = dataclasses.replace(cell, optim=name, seed=seed, training=training)
        losses[name, seed] = run_cell(other, tmp_path)["curve"][0]["train_loss"]
    assert losses["adam_l2", 0] == losses["proxadam", 0] != losses["proxadam", 1]


def test_a_run_whose_loss_is_not_finite_is_a_result(cell, tmp_path):
    result = run_cell(dataclasses.replace(cell, optim="sgd", learning_rate=1e30), tmp_path)
    assert result["status"] == "diverged"
    assert result["validation"] is None
    assert result["test"] is None
    assert result["curve"][-1]["train_loss"] is None
    assert result["curve"][-1]["step"] == 4, "it stops at once"
    json.dumps(result, allow_nan=False)


def test_accumulation_does_not_change_the_training(cell, tmp_path):
    """One batch of 16 and two of 8 give the same mean gradient, so the same curve up to rounding."""
    whole = dataclasses.replace(cell, optim="sgd", learning_rate=0.1, weight_decay=0.0)
    halves = dataclasses.replace(
        whole,
        training=dataclasses.replace(whole.training, per_device_train_batch_size=8, gradient_accumulation_steps=2),
    )
    one, two = run_cell(whole, tmp_path), run_cell(halves, tmp_path)
    assert two["validation"]["loss"] == pytest.approx(one["validation"]["loss"], rel=1e-5)


def test_mixed_precision_is_as_good_and_not_the_same_and_ends_with_its_cell(cell, tmp_path):
    mixed = dataclasses.replace(cell, training=dataclasses.replace(cell.training, bf16=True, use_cpu=False))
    losses = [run_cell(c, tmp_path)["validation"]["loss"] for c in (cell, mixed, cell)]
    assert 0 < abs(losses[1] - losses[0]) < 0.01
    assert losses[2] == losses[0]


def test_steps_given_as_a_share_follow_from_the_epochs(cell, tmp_path):
    # 128 images in batches of 16, twice: 16 steps; a quarter of them is 4.
    training = dataclasses.replace(
        cell.training, max_steps=-1, num_train_epochs=2.0, eval_steps=0.25, logging_steps=0.5, warmup_steps=0.5
    )
    curve = run_cell(dataclasses.replace(cell, training=training), tmp_path)["curve"]
    assert [point["step"] for point in curve if "validation_loss" in point] == [4, 8, 12, 16]
    assert [point["step"] for point in curve if "train_loss" in point] == [8, 16]
    # The logged rate is the step's own: the eighth of sixteen steps is the last one of the warm-up.
    assert curve[1]["learning_rate"] == pytest.approx(cell.learning_rate, rel=0.2)


def test_the_live_optimizer_is_found_inside_all_wrappers():
    """As under DeepSpeed: accelerate wraps a ZeRO optimizer, which is none of torch's, and that wraps the real one."""
    inner = ProxAdam([torch.nn.Parameter(torch.ones(3))], lr=0.1, weight_decay=0.5)
    found = describe_optimizer(types.SimpleNamespace(optimizer=types.SimpleNamespace(optimizer=inner)))
    assert found["class"] == "hf_proxadam.optim.proxadam.ProxAdam"
    assert found["groups"] == [{"lr": 0.1, "weight_decay": 0.5, "parameters": 3}]
    assert describe_optimizer(inner) == found
