import json
import os
import runpy
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from hf_proxadam import scales
from hf_proxadam.report.verify import verify
from tests.hub_server import client_environment, serving
from tests.script_runs import SCRIPTS, as_arguments, run_script
from tests.tasks.glue_data import write_bert, write_glue


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue")
    write_glue(folder / "data")
    write_bert(folder / "bert")
    return folder


@pytest.fixture
def arguments(inputs, tmp_path):
    given = {
        "task_name": "mrpc",
        "dataset_path": inputs / "data",
        "model_name_or_path": inputs / "bert",
        "output_dir": tmp_path / "out",
        "optim": "proxadam",
        "learning_rate": 5e-3,
        "num_train_epochs": 8,
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    return lambda **changes: as_arguments({**given, **changes})


@pytest.fixture
def run_glue(monkeypatch):
    return lambda arguments: run_script(monkeypatch, "run_glue", arguments)


def test_run_glue_learns_and_leaves_metrics_scales_and_the_live_optimizer(run_glue, arguments, tmp_path, capsys):
    run_glue(
        arguments(
            validation_fraction=0.25,
            optim_args="decay_schedule=relative",
            record_scales_every=4,
            num_train_epochs=12,
        )
    )
    out = tmp_path / "out"
    results = json.loads((out / "all_results.json").read_text())
    # The label is one word of the second sentence; chance is about a half.
    assert results["eval_accuracy"] > 0.9
    assert results["test_accuracy"] > 0.9
    assert {"eval_f1", "eval_loss", "train_loss", "train_runtime", "train_samples_per_second"} <= results.keys()
    printed = capsys.readouterr().out
    assert "eval_accuracy" in printed
    assert "eval_f1" in printed
    table = scales.load(out / "scales").to_pandas()
    # 72 examples in batches of 8, 12 times.
    assert sorted(table["step"].unique()) == list(range(4, 109, 4))
    assert {"gradient", "update", "weight"} <= set(table["quantity"])
    record = json.loads((out / "run.json").read_text())
    assert record["optimizer"]["class"] == "hf_proxadam.optim.proxadam.ProxAdam"
    assert record["optimizer"]["defaults"]["decay_schedule"] == "relative"
    assert record["optimizer"]["defaults"]["lr"] == 5e-3
    assert record["command"][:2] == ["run_glue.py", "--task_name=mrpc"]
    assert record["training"]["learning_rate"] == 5e-3
    assert record["task"]["splits"]["test"] == {"of": "validation", "examples": 48}
    assert (out / "model.safetensors").is_file()
    assert verify(out) == ([], [])
    scores = ModelCard.load(out / "README.md").data.eval_results
    assert {score.metric_type: score.metric_value for score in scores} == {
        name: results[f"test_{name}"] for name in ("accuracy", "f1")
    }


def test_run_glue_evaluates_only_where_only_that_is_asked_for(run_glue, arguments, tmp_path):
    run_glue([*arguments(num_train_epochs=1, output_dir=tmp_path / "trained"), "--do_train"])
    assert not (tmp_path / "trained" / "eval_results.json").exists()
    run_glue([*arguments(max_eval_samples=8, model_name_or_path=tmp_path / "trained"), "--do_eval"])
    assert (tmp_path / "out" / "eval_results.json").is_file()
    assert not (tmp_path / "out" / "train_results.json").exists()
    assert not (tmp_path / "out" / "scales").exists()


def test_run_glue_writes_submissions_of_mnli_and_with_its_model_of_ax(run_glue, arguments, tmp_path):
    data, trained = tmp_path / "data", tmp_path / "mnli"
    splits = {"train": 96, "validation_matched": 16, "validation_mismatched": 16}
    write_glue(data, "mnli", splits={**splits, "test_matched": 10, "test_mismatched": 10})
    write_glue(data, "ax", splits={"test": 12})
    mnli = arguments(task_name="mnli", dataset_path=data, output_dir=trained, optim="adamw_scale_free")
    run_glue([*mnli, "--do_train", "--do_eval", "--do_predict"])
    results = json.loads((trained / "all_results.json").read_text())
    assert results["eval_accuracy"] > 0.6
    assert "eval_mismatched_accuracy" in results
    run_glue([*arguments(task_name="ax", dataset_path=data, model_name_or_path=trained), "--do_predict"])
    for file, rows in {
        trained / "MNLI-m.tsv": 10,
        trained / "MNLI-mm.tsv": 10,
        tmp_path / "out" / "AX.tsv": 12,
    }.items():
        lines = file.read_text().splitlines()
        assert lines[0] == "index\tprediction"
        assert [line.split("\t")[0] for line in lines[1:]] == [str(i) for i in range(rows)]
        assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "neutral", "contradiction"}
    assert not list(trained.glob(".*.tmp"))


def test_run_glue_does_not_train_on_ax(run_glue, arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run_glue(arguments(task_name="ax"))
    assert caught.value.code == 2
    assert "only --do_predict goes" in capsys.readouterr().err


def test_evaluating_on_the_way_does_not_mean_evaluating_only(run_glue, arguments, tmp_path):
    run_glue(arguments(max_steps=4, eval_strategy="steps", eval_steps=2, record_scales_every=0))
    assert (tmp_path / "out" / "train_results.json").is_file()
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_accuracy" in entry] == [2, 4]


def test_run_glue_multiplies_its_loss(run_glue, arguments, tmp_path):
    options = {"max_steps": 6, "record_scales_every": 0, "optim": "adamw_scale_free", "max_grad_norm": 0}
    for name, multiplier in (("plain", 1), ("multiplied", 64)):
        run_glue(arguments(**options, output_dir=tmp_path / name, loss_multiplier=multiplier))
    plain, multiplied = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "multiplied"))
    assert plain == multiplied, "a power of two changes no bit of a scale-free run"
    record = json.loads((tmp_path / "multiplied" / "run.json").read_text())
    assert record["script"]["loss_multiplier"] == 64
    assert "The loss was multiplied by 64" in (tmp_path / "multiplied" / "README.md").read_text()
    assert record["timing"]["train_seconds"] > 0
    assert record["timing"]["samples_per_second"] > 0


def test_run_glue_does_not_mix_two_runs_scales_but_resumes_one(run_glue, arguments, tmp_path, capsys):
    steps = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "record_scales_every": 2}
    run_glue(arguments(**steps))
    with pytest.raises(SystemExit) as caught:
        run_glue(arguments(**steps))
    assert caught.value.code == 2
    assert "holds another run's records" in capsys.readouterr().err
    whole = (tmp_path / "out" / "model.safetensors").read_bytes()
    run_glue(arguments(**steps, resume_from_checkpoint=tmp_path / "out" / "checkpoint-4"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole
    table = scales.load(tmp_path / "out" / "scales").to_pandas()
    assert sorted(table["step"].unique()) == [2, 4, 6, 8]


def test_run_glue_resumes_from_the_last_whole_checkpoint(run_glue, arguments, tmp_path, capsys):
    steps = {"max_steps": 12, "save_strategy": "steps", "save_steps": 4, "record_scales_every": 2}
    with pytest.raises(SystemExit) as caught:
        run_glue(arguments(**steps, resume_from_checkpoint="last"))
    assert caught.value.code == 2
    assert "There is no whole checkpoint in" in capsys.readouterr().err
    run_glue(arguments(**steps))
    out = tmp_path / "out"
    whole = (out / "model.safetensors").read_bytes()
    # As if it had died while it wrote the last one: transformers' own choice would be that.
    (out / "checkpoint-12" / "trainer_state.json").unlink()
    (out / "checkpoint-12" / "optimizer.pt").write_bytes(b"torn")
    run_glue(arguments(**steps, resume_from_checkpoint="last"))
    assert (out / "model.safetensors").read_bytes() == whole
    state = json.loads((out / "trainer_state.json").read_text())
    assert [line["step"] for line in state["log_history"] if "loss" not in line][-1] == 12
    table = scales.load(out / "scales").to_pandas()
    assert sorted(table["step"].unique()) == [2, 4, 6, 8, 10, 12]


def test_two_runs_with_one_seed_are_bit_equal(run_glue, arguments, tmp_path):
    for name in ("a", "b"):
        run_glue(arguments(output_dir=tmp_path / name, num_train_epochs=1, record_scales_every=0))
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b
    assert not (tmp_path / "a" / "scales").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task_name": "mrcp"}, "invalid choice: 'mrcp' (choose from"),
        ({"optim": "proxadm"}, "argument --optim: invalid choice: 'proxadm' (choose from"),
        ({"task_name": None}, "the following arguments are required: --task_name"),
        ({"dataset_path": "nowhere"}, "dataset_path is 'nowhere', but there is no such folder."),
        ({"task_name": "rte"}, "rte is not there;"),
        ({"model_name_or_path": "./nowhere"}, "model_name_or_path is './nowhere', but there is no such folder."),
        ({"optim_args": "decay=1"}, "optim_args has no 'decay' for 'proxadam'"),
        ({"optim": "adamw_torch", "optim_args": "decay=1"}, "decay=1 has no effect on adamw_torch"),
        ({"learning_rate": -1}, "The learning rate is -1.0; it must be"),
        ({"weight_decay": -1}, "The weight decay is -1.0; it must be"),
        ({"record_scales_every": -1}, "record_scales_every is -1; it must be at least 1, or 0 for never."),
        ({"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint is 'nowhere', but there is no such folder."),
        ({"loss_multiplier": 0}, "loss_multiplier is 0.0; it must be a positive number"),
        ({"optimm": "x"}, "--optimm=x"),
        ({"push_to_hub": True, "hub_strategy": "all_checkpoints"}, "checkpoints are never published"),
        ({"push_to_hub": True, "hub_always_push": True}, "--hub_always_push has no effect here"),
        ({"push_to_hub": True, "hub_model_id": "a b/c"}, "'a b/c' can't be the name of a repository"),
        ({"push_to_hub": True, "hub_model_id": "ada/x"}, "ada/x can't be reached: HF_HUB_OFFLINE is set"),
        ({"push_to_hub": True, "do_eval": True}, "--push_to_hub publishes what was trained"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(run_glue, arguments, changes, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        run_glue(arguments(**changes))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("run_glue.py: ")
    assert sentence in error.splitlines()[-1]
    assert "Traceback" not in error


def test_run_glue_publishes_once_and_not_by_the_trainers_own_push(arguments, tmp_path):
    """The Trainer would commit at every save, with checkpoints, training_args.bin and a card of its own."""
    saving = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 1, "hub_token": "hf_ada"}
    pushing = {"push_to_hub": True, "hub_private_repo": True}
    with serving() as hub:
        command = [sys.executable, SCRIPTS / "run_glue.py", *arguments(**saving, **pushing)]
        env = client_environment(hub, tmp_path / "home")
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"{hub.endpoint}/ada/out is published" in done.stderr
        repo = hub.repos["model", "ada/out"]  # the folder's name, with the owner of the token before it
    assert repo.private
    assert len(repo.commits) == 2
    out = tmp_path / "out"
    for name in ("README.md", "model.safetensors", "all_results.json"):
        assert repo.files[name] == (out / name).read_bytes()
    assert not [path for path in repo.files if "checkpoint" in path or path.endswith((".bin", ".pt", ".pth"))]
    assert b"hf_ada" not in b"".join(repo.files.values())
    assert "hf_ada" not in (out / "run.json").read_text()


def test_an_eval_strategy_asks_for_a_training_too(run_glue, arguments, tmp_path):
    run_glue(arguments(eval_strategy="epoch", num_train_epochs=1, record_scales_every=0))
    assert (tmp_path / "out" / "train_results.json").is_file()


def test_compare_is_the_command_of_the_same_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare.py", "nothing.yaml"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPTS / "compare.py"), run_name="__main__")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("hf-proxadam: The study file nothing.yaml can't be read")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_run_glue_under_a_launcher(processes, arguments, tmp_path):
    one = ["accelerate.commands.launch", "--cpu", "--num_processes=1"]
    launch = one if processes == 1 else ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, "-m", *launch, SCRIPTS / "run_glue.py", *arguments(num_train_epochs=1)]
    env = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=env, check=True)
    assert "eval_accuracy" in json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert verify(tmp_path / "out") == ([], [])
    assert f"world_size = {processes}." in (tmp_path / "out" / "README.md").read_text()
