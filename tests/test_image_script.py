import json
import os
import socket
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification, pipeline

import hf_proxadam.tasks.paper_nets  # noqa: F401  (registers what is loaded below)
from hf_proxadam import scales
from hf_proxadam.report.verify import verify
from tests.script_runs import SCRIPTS, as_arguments, run_script
from tests.tasks.glue_data import write_bert
from tests.tasks.image_files import write_digits, write_squares
from tests.tasks.test_images import TINY, damage

VIT = "patch_size=2,hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64,initializer_range=0.1"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("images") / "digits")


@pytest.fixture
def arguments(digits, tmp_path):
    given = {
        "dataset_path": digits,
        "model_type": "vit",
        "config_overrides": VIT,
        "output_dir": tmp_path / "out",
        "optim": "proxadam",
        "learning_rate": 5e-3,
        "max_grad_norm": 0,
        "num_train_epochs": 8,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 100,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return lambda **changes: as_arguments({**given, **changes})


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return lambda arguments: run_script(monkeypatch, "run_image_classification", arguments)


def test_a_vit_learns_the_digits_and_leaves_metrics_scales_and_the_live_optimizer(run, arguments, tmp_path):
    run(arguments(validation_fraction=0.2, record_scales_every=40, weight_decay=0.1, num_train_epochs=20))
    out = tmp_path / "out"
    results = json.loads((out / "all_results.json").read_text())
    assert results["eval_accuracy"] > 0.8  # chance is a tenth
    assert results["test_accuracy"] > 0.75
    assert sorted(scales.load(out / "scales").to_pandas()["step"].unique()) == list(range(40, 201, 40))
    model = AutoModelForImageClassification.from_pretrained(out)
    record = json.loads((out / "run.json").read_text())
    assert record["optimizer"]["class"] == "hf_proxadam.optim.proxadam.ProxAdam"
    assert record["optimizer"]["defaults"]["lr"] == 5e-3
    groups = record["optimizer"]["groups"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(5e-3, 0.1), (5e-3, 0.0)]
    assert sum(group["parameters"] for group in groups) == sum(param.numel() for param in model.parameters())
    assert record["command"][0] == "run_image_classification.py"
    assert record["script"]["model_type"] == "vit"
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.base_model is None
    assert "vit was trained from random weights on" in card.text
    assert verify(out) == ([], [])
    assert record["timing"]["samples_per_second"] > 0
    assert model.config.id2label[7] == "digit 7"
    assert json.loads((out / "preprocessor_config.json").read_text())["size"] == {"height": 8, "width": 8}


def test_a_resnet_without_normalisation_trains_on_files_and_classifies_after_it(run, arguments, tmp_path):
    squares = write_squares(tmp_path / "squares", train=8)
    options = {
        "dataset_path": squares,
        "model_type": None,
        "config_overrides": "depth=8",
        "model_name_or_path": "resnet20",
    }
    augmentation = {"random_crop": "padded", "random_crop_padding": 2, "random_flip": True, "mixup_alpha": 0.2}
    training = {"num_train_epochs": 12, "per_device_train_batch_size": 8, "record_scales_every": 0}
    run(arguments(**options, **augmentation, **training, normalization="none", learning_rate=2e-3))
    assert json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_accuracy"] > 0.9
    classify = pipeline("image-classification", model=str(tmp_path / "out"))
    assert classify(str(squares / "test" / "green" / "0.png"))[0]["label"] == "green"


def test_evaluating_only_takes_a_trained_model(run, arguments, tmp_path, capsys):
    run([*arguments(max_steps=3, record_scales_every=0), "--do_train"])
    assert not (tmp_path / "out" / "eval_results.json").exists()
    trained = {"model_type": None, "config_overrides": None, "model_name_or_path": tmp_path / "out"}
    run([*arguments(**trained, output_dir=tmp_path / "evaluated"), "--do_eval"])
    assert (tmp_path / "evaluated" / "eval_results.json").is_file()
    assert not (tmp_path / "evaluated" / "train_results.json").exists()
    other = {**trained, "dataset_path": write_squares(tmp_path / "squares"), "image_size": 8}
    for options, sentence in (
        ({}, "A vit with random weights can't be evaluated"),
        (other, "has no head for 3 classes"),
    ):
        with pytest.raises(SystemExit) as caught:
            run([*arguments(**options, output_dir=tmp_path / "refused"), "--do_eval"])
        assert caught.value.code == 2
        assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_two_runs_with_one_seed_are_bit_equal_and_another_seed_is_not(run, arguments, tmp_path):
    options = {"num_train_epochs": 1, "random_crop": "padded", "random_flip": True, "record_scales_every": 0}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(arguments(**options, output_dir=tmp_path / name, seed=seed))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_run_that_is_resumed_within_an_epoch_is_the_uninterrupted_one(run, arguments, tmp_path):
    augmentation = {"random_crop": "padded", "random_flip": True, "mixup_alpha": 0.3}
    steps = {"max_steps": 20, "save_strategy": "steps", "save_steps": 8, "record_scales_every": 0}
    run(arguments(**steps, **augmentation))
    whole = (tmp_path / "out" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "model.safetensors").unlink()
    run(arguments(**steps, **augmentation, resume_from_checkpoint=tmp_path / "out" / "checkpoint-8"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset_path": __file__}, "that is a file; give its folder."),
        ({"dataset_path": "nowhere"}, "dataset_path is 'nowhere', but there is no such folder."),
        ({"dataset_path": None}, "Give one of dataset_name (on the Hub) and dataset_path (a local folder)."),
        ({"dataset_path": None, "dataset_name": "no/such"}, "The dataset no/such can't be read: "),
        ({"model_type": None}, "Give one of model_name_or_path"),
        ({"model_type": None, "model_name_or_path": "BERT", "config_overrides": None}, "no image-classification head"),
        ({"label_column": "class"}, "has no column 'class'; name one in label_column, of: image, label."),
        ({"random_crop": "centre"}, "invalid choice: 'centre'"),
        ({"normalization": "layer"}, "invalid choice: 'layer'"),
        ({"loss_multiplier": -1}, "loss_multiplier is -1.0; it must be a positive number"),
        ({"optim_args": "decay=1"}, "optim_args has no 'decay' for 'proxadam'"),
        ({"do_predict": True}, "--do_predict is not supported"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(run, arguments, changes, sentence, tmp_path, capsys):
    if changes.get("model_name_or_path") == "BERT":
        changes = {**changes, "model_name_or_path": write_bert(tmp_path / "bert")}
    with pytest.raises(SystemExit) as caught:
        run(arguments(**changes))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("run_image_classification.py: ")
    assert sentence in error.splitlines()[-1]
    assert "Traceback" not in error


def test_an_unreadable_image_ends_the_run_with_its_name_unless_it_may_be_skipped(run, arguments, tmp_path, capsys):
    folder = write_digits(tmp_path / "damaged", 60, 30)
    damage(folder, row=7)
    options = {"dataset_path": folder, "config_overrides": f"{TINY}", "num_train_epochs": 1, "record_scales_every": 0}
    with pytest.raises(SystemExit) as caught:
        run(arguments(**options))
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        "damaged, split train, row 7 (7.png) can't be read as an image: its format is unknown (skip_unreadable_images"
        in last
    )
    run(arguments(**options, skip_unreadable_images=True))
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["train_loss"] > 0


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.slow
def test_two_processes_equal_one_of_the_same_global_batch(arguments, tmp_path):
    # Crops and flips belong to the images, so that they are the same ones.
    options = {"random_crop": "padded", "random_crop_padding": 1, "random_flip": True, "num_train_epochs": 2}
    options["max_train_samples"] = 384  # no batch is cut short, which two processes would fill up
    launch = [sys.executable, "-m", "accelerate.commands.launch", f"--main_process_port={free_port()}"]
    configuration = f"--config_file={SCRIPTS / 'accelerate' / 'cpu.yaml'}"
    script = SCRIPTS / "run_image_classification.py"
    env = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    one = [sys.executable, script, *arguments(**options, output_dir=tmp_path / "one")]
    two = [*launch, configuration, script]
    two += arguments(**options, output_dir=tmp_path / "two", per_device_train_batch_size=16)
    subprocess.run(one, env=env, check=True)
    subprocess.run(two, env={**env, "ACCELERATE_USE_CPU": "true"}, check=True)
    # Not the training loss, of which the Trainer reports the first process's share.
    found = [json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("one", "two")]
    assert found[0]["eval_loss"] == pytest.approx(found[1]["eval_loss"], rel=1e-5)
    steps = [json.loads((tmp_path / name / "trainer_state.json").read_text())["global_step"] for name in ("one", "two")]
    assert steps == [24, 24]


@pytest.mark.slow
def test_under_accelerate_launch(arguments, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1"]
    command = [*launch, SCRIPTS / "run_image_classification.py", *arguments(num_train_epochs=1)]
    env = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=env, check=True)
    assert "eval_accuracy" in json.loads((tmp_path / "out" / "all_results.json").read_text())
