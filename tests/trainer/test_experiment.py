import json

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

import hf_proxadam  # noqa: F401
from hf_proxadam.trainer.experiment import ExperimentTrainer


class Linear(nn.Module):
    """The least model that a Trainer trains: a linear classifier."""

    accepts_loss_kwargs = False
    config = PretrainedConfig()  # the Trainer asks for one where labels are smoothed

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, pixel_values, labels=None):
        logits = self.layer(pixel_values)
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


class Points(torch.utils.data.Dataset):
    def __init__(self, shares=False):
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(32, 4, generator=generator)
        hard = self.pixels[:, :3].argmax(1)
        self.labels = 0.8 * functional.one_hot(hard, 3) + 0.2 / 3 if shares else hard
        self.epochs = []

    def __len__(self):
        return 32

    def __getitem__(self, i):
        return {"pixel_values": self.pixels[i], "labels": self.labels[i]}

    def begin_epoch(self, seed, epoch):
        self.epochs.append((seed, epoch))


POINTS = Points()


def train(tmp_path, data=None, multiplier=1.0, **options):
    set_seed(0)
    data = data or Points()
    given = {"optim": "proxadam_scale_free", "learning_rate": 0.05, "max_grad_norm": 0.0, "num_train_epochs": 3}
    given |= {"per_device_train_batch_size": 8, "save_strategy": "no"}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **{**given, **options},
    )
    model = Linear()
    trainer = ExperimentTrainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, loss_multiplier=multiplier
    )
    trainer.train()
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer):
    return trainer.model.layer.weight.detach()


@pytest.mark.parametrize("optim", ["proxadam_scale_free", "adamw_scale_free"])
def test_a_scale_free_optimizer_does_not_care_for_the_multiplier(tmp_path, optim):
    plain = train(tmp_path, optim=optim, weight_decay=0.1)
    # A power of two changes no bit; another number only the last ones.
    assert torch.equal(weights(train(tmp_path, optim=optim, weight_decay=0.1, multiplier=64.0)), weights(plain))
    hundredfold = train(tmp_path, optim=optim, weight_decay=0.1, multiplier=100.0)
    assert torch.allclose(weights(hundredfold), weights(plain), rtol=1e-4)


def test_adam_l2_and_sgd_do(tmp_path):
    for optim, decay in (("adam_l2", 0.1), ("sgd", 0.0)):
        plain = train(tmp_path, optim=optim, weight_decay=decay)
        hundredfold = train(tmp_path, optim=optim, weight_decay=decay, multiplier=100.0)
        assert not torch.allclose(weights(hundredfold), weights(plain), rtol=1e-2)


def test_gradients_are_multiplied_and_reported_losses_are_not(tmp_path):
    plain, tenfold = (train(tmp_path, optim="sgd", multiplier=m, learning_rate=0.1 / m) for m in (1.0, 10.0))
    # A tenth of the learning rate makes up for it.
    assert torch.allclose(weights(plain), weights(tenfold), rtol=1e-5)
    assert losses(tenfold) == pytest.approx(losses(plain), rel=1e-4)
    assert tenfold.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-4)


def test_shares_of_classes_are_labels(tmp_path):
    data = Points(shares=True)
    trainer = train(tmp_path, data, max_steps=1)
    batch = {"pixel_values": data.pixels, "labels": data.labels}
    logits = trainer.model(data.pixels).logits
    expected = -(data.labels * functional.log_softmax(logits, 1)).sum(1).mean()
    assert trainer.compute_loss(trainer.model.eval(), batch).item() == pytest.approx(expected.item())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_accumulated_batches_are_one_batch_with_shares_too(tmp_path):
    for shares in (False, True):
        whole, parts = (
            train(
                tmp_path,
                Points(shares),
                optim="sgd",
                per_device_train_batch_size=size,
                gradient_accumulation_steps=8 // size,
            )
            for size in (8, 2)
        )
        assert torch.allclose(weights(whole), weights(parts), atol=1e-6)


def test_label_smoothing_goes_into_shares(tmp_path):
    data = Points(shares=True)
    trainer = train(tmp_path, data, max_steps=1, label_smoothing_factor=0.3)
    logits = trainer.model(data.pixels).logits
    smooth = 0.7 * data.labels + 0.1
    expected = -(smooth * functional.log_softmax(logits, 1)).sum(1).mean()
    batch = {"pixel_values": data.pixels, "labels": data.labels}
    assert trainer.compute_loss(trainer.model.eval(), batch).item() == pytest.approx(expected.item())


def test_the_dataset_is_told_seed_and_epoch_and_after_a_resume_again(tmp_path):
    data = Points()
    train(tmp_path, data, seed=7, save_strategy="steps", save_steps=6)
    assert data.epochs == [(7, 0), (7, 1), (7, 2)]
    # Step 6 lies within the second epoch of four steps.
    assert json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["epoch"] == 1.5
    data = Points()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_train_epochs=3,
        optim="proxadam_scale_free",
        use_cpu=True,
        report_to="none",
        seed=7,
    )
    ExperimentTrainer(model=Linear(), args=arguments, train_dataset=data).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-6")
    )
    assert data.epochs == [(7, 1), (7, 2)]


def vit(tmp_path, **options):
    set_seed(0)
    config = ViTConfig(
        image_size=2,
        patch_size=1,
        num_channels=1,
        num_labels=3,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        save_steps=3,
        learning_rate=0.01,
        use_cpu=True,
        report_to="none",
        **options,
    )
    data = [
        {"pixel_values": row.view(1, 2, 2), "labels": label}
        for row, label in zip(POINTS.pixels, POINTS.labels, strict=True)
    ]
    model = ViTForImageClassification(config)
    return ExperimentTrainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)


# The last checkpoint is within the second epoch: there is data left, and nothing to train.
@pytest.mark.parametrize("step", [3, 6])
def test_a_vit_resumes_with_all_its_weights_and_takes_no_step_too_many(tmp_path, step):
    whole = vit(tmp_path, lr_scheduler_type="constant")
    whole.train()
    resumed = vit(tmp_path, lr_scheduler_type="constant")
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert (resumed.state.global_step, resumed.state.epoch) == (6, 1.5)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_the_best_vit_is_loaded_with_all_its_weights(tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "loss"}
    trainer = vit(tmp_path, **best, greater_is_better=True)  # so that the first checkpoint is the best
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-3")
    stored = ViTForImageClassification.from_pretrained(tmp_path / "checkpoint-3").state_dict()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(stored[name], value), name


@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan"), float("inf")])
def test_a_multiplier_that_is_no_positive_number_is_refused(tmp_path, multiplier):
    with pytest.raises(ValueError, match="loss_multiplier is .*; it must be a positive number"):
        train(tmp_path, multiplier=multiplier)
