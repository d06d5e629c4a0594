"""`python -m hf_proxadam.launch`: a script that knows nothing of the package, run as Python would run it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hf_proxadam.trainer import launch

ROOT = Path(__file__).parents[2]
TRAINING = """
import sys
import torch
from neighbour import ROWS
from transformers import HfArgumentParser, Trainer, TrainingArguments

class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)
    def forward(self, x, labels):
        return {"loss": (self.linear(x).squeeze(-1) - labels).square().mean()}

if __name__ == "__main__":
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    trainer = Trainer(Regression(), args, train_dataset=ROWS)
    trainer.train()
    # One string, hence one write: two processes share the pipe.
    sys.stdout.write(f"ran {type(trainer.optimizer.optimizer).__name__} {sys.argv[0]} {args.world_size}\\n")
"""
NEIGHBOUR = """
import torch
ROWS = [{"x": torch.ones(2), "labels": torch.ones(())} for _ in range(8)]
"""
# The data set is a member of __main__: what starts a worker afresh has to find the script again.
WORKERS = """
import torch

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return index

if __name__ == "__main__":
    from transformers.training_args import OptimizerNames
    assert OptimizerNames("proxadam") in list(OptimizerNames)
    for way in ("fork", "spawn", "forkserver"):
        loader = torch.utils.data.DataLoader(Rows(), num_workers=1, multiprocessing_context=way)
        print(way, [int(index) for index in loader])
"""
# Printed when the interpreter ends, which is too late for gloo's threads.
GROUP = """
import atexit
import torch.distributed
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
atexit.register(lambda: print("a group is left:", torch.distributed.is_initialized()))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(TRAINING)
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    (tmp_path / "workers.py").write_text(WORKERS)
    return tmp_path


def options(folder: Path) -> list[str]:
    given = f"--output_dir {folder / 'out'} --optim proxadam --max_steps 2 --use_cpu --report_to none"
    return [*given.split(), "--save_strategy", "no", "--disable_tqdm", "true"]


def run(command: list[str], cwd: Path, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_port() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return str(bound.getsockname()[1])


def test_an_unmodified_script_trains_with_our_names(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = run([sys.executable, "-m", "hf_proxadam.launch", "../train.py", *options(folder)], elsewhere)
    assert "ran ProxAdam ../train.py 1" in out


def test_workers_of_every_kind_find_the_script_again(folder: Path) -> None:
    out = run([sys.executable, "-m", "hf_proxadam.launch", "workers.py"], folder)
    assert out.splitlines() == [f"{way} [0, 1, 2, 3]" for way in ("fork", "spawn", "forkserver")]


def test_the_process_group_ends_before_the_interpreter(tmp_path: Path) -> None:
    (tmp_path / "group.py").write_text(GROUP)
    assert run([sys.executable, "group.py"], tmp_path) == "a group is left: True\n"
    assert run([sys.executable, "-m", "hf_proxadam.launch", "group.py"], tmp_path) == "a group is left: False\n"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate", "module"])
def test_under_the_launchers(launcher: str, folder: Path) -> None:
    ours = ["-m", "hf_proxadam.launch"]
    command = {
        "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}", *ours],
        "accelerate": ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", *ours],
        "module": ours,
    }[launcher]
    script = ["-m", "train"] if launcher == "module" else ["train.py"]
    out = run([sys.executable, *command, *script, *options(folder)], folder)
    name = str(folder / "train.py") if launcher == "module" else "train.py"
    processes = 2 if launcher == "torchrun" else 1
    assert out.count(f"ran ProxAdam {name} {processes}") == processes


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.mark.usefixtures("restored")
def test_the_script_is_main_in_every_respect(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, __main__\n"
        "class Here: pass\n"
        "assert __main__.Here is Here and Here.__module__ == '__main__'\n"
        "assert __name__ == '__main__' and __spec__ is None and __package__ is None\n"
        "import pickle, inspect\n"
        "assert type(pickle.loads(pickle.dumps(Here()))) is Here\n"
        "assert inspect.getsource(Here) == 'class Here: pass\\n'\n"
        f"assert __file__ == sys.argv[0] == {str(script)!r} and sys.argv[1:] == ['--a', 'b']\n"
        f"assert sys.path[0] == {str(tmp_path)!r}\n"
        "raise SystemExit(7)\n"
    )
    with pytest.raises(SystemExit) as left:
        launch.main([str(script), "--a", "b"])
    assert left.value.code == 7


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "there is no script to run: python -m hf_proxadam.launch SCRIPT.py"),
        (["nothing.py"], "the script 'nothing.py' can't be read (No such file or directory)"),
        (["."], "the script '.' is a folder; give a Python file"),
        (["-m"], "-m needs the name of a module"),
        (["-m", "nothing.here"], "there is no module 'nothing.here'; a script is given by its path"),
        (["-m", "..up"], "there is no module '..up'"),
        (["--optim", "proxadam"], "there is no option '--optim', only -m MODULE; the script comes first"),
    ],
)
def test_wrong_input_gets_one_sentence_and_exit_code_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        launch.main(words)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m hf_proxadam.launch: {sentence}")
    assert error.count("\n") == 1


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    launch.main(["--help"])
    assert "accelerate launch -m hf_proxadam.launch SCRIPT.py" in capsys.readouterr().out
