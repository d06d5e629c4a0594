"""kill -9 while the Trainer writes a checkpoint: what is torn is refused, and the one before goes on bit by bit.

The Trainer writes trainer_state.json last: a checkpoint that has none is not whole. `resume_from_checkpoint=True` takes
the newest folder all the same and stops at the missing file, so a user gives the newest whole one by name.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer

from .ways_worker import arguments, rows, tiny_llama

NAME = "proxadam_scale_free"
CODE = """
import os, signal, sys
from io import BytesIO
from pathlib import Path
import torch
from tests.trainer.test_killed_save import trainer

save, folder, file = torch.save, Path(sys.argv[1]), sys.argv[2]

def save_half(state, path, **options):
    if not str(path).endswith(f"checkpoint-8/{file}"):
        return save(state, path, **options)
    whole = BytesIO()
    save(state, whole)
    Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = save_half
trainer(folder).train()
"""


def trainer(folder: Path) -> Trainer:
    args = arguments("single", NAME, folder, max_steps=12, save_steps=4)
    return Trainer(tiny_llama(), args, train_dataset=rows())


@pytest.mark.parametrize("file", ["optimizer.pt", pytest.param("scheduler.pt", marks=pytest.mark.slow)])
def test_killed_while_saving(file: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, str(tmp_path), file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -9, done.stderr
    last, torn = tmp_path / "checkpoint-4", tmp_path / "checkpoint-8"
    assert (torn / file).stat().st_size < (last / file).stat().st_size
    assert [c.name for c in (last, torn) if (c / "trainer_state.json").exists()] == ["checkpoint-4"]

    with pytest.raises(FileNotFoundError, match=r"checkpoint-8/trainer_state\.json"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    # Even where all other files were there, half an optimizer's state would not pass for a new one.
    lost = shutil.copytree(torn, tmp_path / "lost" / "checkpoint-8")
    for whole in last.iterdir():
        if not (lost / whole.name).exists():
            shutil.copy(whole, lost)
    refused = trainer(tmp_path / "lost")
    with pytest.raises((OSError, RuntimeError), match="Invalid argument|PytorchStreamReader"):
        refused.train(resume_from_checkpoint=True)
    assert refused.state.global_step < 12

    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(last))
    unbroken = trainer(tmp_path / "unbroken")
    unbroken.train()
    for p, q in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(p, q)
    # The torn checkpoint was written anew, whole.
    assert (torn / "trainer_state.json").exists()
    assert torch.load(torn / "optimizer.pt", weights_only=True)["state"][0]["step"] == 8
