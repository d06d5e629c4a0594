import collections

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from transformers import EvalPrediction

from hf_proxadam.tasks import TASKS, task_class
from hf_proxadam.tasks.base import Task, unscaled
from hf_proxadam.tasks.digits import DigitsTask


def test_splits_are_disjoint_complete_stratified_and_fixed():
    task = DigitsTask()
    splits = [task.train, task.validation, task.test]
    assert [len(split) for split in splits] == [1077, 360, 360]
    # No two of the 1,797 images are equal, so their pixels name them.
    images = [image.numpy().tobytes() for split in splits for image, _ in split]
    original = {pixels.tobytes() for pixels in (load_digits().images / 8 - 1).astype("float32")}
    assert len(set(images)) == len(images) == len(original)
    assert set(images) == original
    for split in splits:
        counts = collections.Counter(label for _, label in split)
        assert all(0.08 < counts[label] / len(split) < 0.12 for label in range(10))
    assert [label for _, label in task.test[:12]] == [label for _, label in DigitsTask(hidden_size=8).test[:12]]


def test_a_batch_goes_through_the_model():
    task = DigitsTask(hidden_size=16, num_hidden_layers=1)
    batch = task.collate(task.train[:5])
    assert batch["pixel_values"].shape == (5, 1, 8, 8)
    assert batch["pixel_values"].min() >= -1
    assert batch["pixel_values"].max() <= 1
    model = task.make_model()
    output = model(**batch)
    assert output.logits.shape == (5, 10)
    assert torch.isfinite(output.loss)
    assert len(model.vit.layers if hasattr(model.vit, "layers") else model.vit.encoder.layer) == 1


def test_first_weights_come_from_the_callers_seed():
    task = DigitsTask(hidden_size=16, num_hidden_layers=1)
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(torch.cat([p.detach().flatten() for p in task.make_model().parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_accuracy():
    logits = np.eye(10)[[1, 2, 3, 4]]
    assert DigitsTask().compute_metrics(EvalPrediction(logits, np.array([1, 2, 3, 9]))) == {"accuracy": 0.75}


@pytest.mark.parametrize(
    "option",
    [
        {"hidden_size": 0},
        {"hidden_size": 50},
        {"patch_size": 3},
        {"hidden_dropout_prob": 1.0},
        {"initializer_range": 0.0},
        {"max_train_samples": 0},
    ],
)
def test_options_out_of_range_are_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"digits: {name} is"):
        DigitsTask(**option)


def test_the_table_of_tasks():
    for name in TASKS:
        assert task_class(name).__doc__
    assert isinstance(task_class("digits")(), Task)
    with pytest.raises(ValueError, match="no task 'cifar'; known are: digits, glue"):
        task_class("cifar")


def test_models_do_not_have_their_gradients_multiplied():
    assert unscaled(DigitsTask().make_model()).accepts_loss_kwargs is False
