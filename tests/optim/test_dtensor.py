"""FSDP2 on the CPU (gloo): sharded states, empty shards, lists that mix DTensors with plain tensors."""

import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_proxadam.trainer.ending import leave

from .cases import CASES, REGISTERED, Case

SHARDED = [c for c in CASES if c in REGISTERED or "proximal" in c.options]
WORLD = 2


class Model(torch.nn.Module):
    """A layer of one row leaves the second rank an empty shard; `free` is not sharded at all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.narrow = torch.nn.Linear(6, 5), torch.nn.Linear(5, 4), torch.nn.Linear(4, 1)
        self.free = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(torch.tanh(self.b(torch.tanh(self.a(x))))) * self.free.sum()


def build() -> Model:
    torch.manual_seed(0)
    return Model()


def train(model: Model, optimizer: torch.optim.Optimizer, steps: range, reduce_free: bool) -> None:
    for t in steps:
        batch = torch.randn(8, 6, generator=torch.Generator().manual_seed(t))
        optimizer.zero_grad()
        model(batch).square().mean().backward()  # the same batch on each rank: the mean over ranks is the gradient
        if reduce_free and model.free.grad is not None:
            dist.all_reduce(model.free.grad, dist.ReduceOp.SUM)
            model.free.grad /= WORLD
        optimizer.step()


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    for number, case in enumerate(SHARDED):
        run_case(case, mesh, rank, f"{folder}/{number}")
    leave()


def run_case(case: Case, mesh: DeviceMesh, rank: int, folder: str) -> None:

    def sharded() -> Model:
        model = build()
        for layer in (model.a, model.b, model.narrow):
            fully_shard(layer, mesh=mesh)
        return model

    model = sharded()
    optimizer = case.make(model.parameters(), lr=0.01)
    train(model, optimizer, range(6), reduce_free=True)
    state = optimizer.state[model.a.weight]
    assert isinstance(state["exp_avg"], DTensor)
    assert state["exp_avg"].to_local().shape[0] < 5
    assert optimizer.state[model.narrow.weight]["step"] == 6, "an empty shard counts its steps too"
    full = {k: v.full_tensor() if isinstance(v, DTensor) else v.detach().clone() for k, v in model.state_dict().items()}

    # Saved and resumed through torch.distributed.checkpoint, sharded.
    dcp.save({"m": model.state_dict(), "o": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=f"{folder}/dcp")
    other = sharded()
    second = case.make(other.parameters(), lr=0.01)
    target = {"m": other.state_dict(), "o": get_optimizer_state_dict(other, second)}
    dcp.load(target, checkpoint_id=f"{folder}/dcp")
    other.load_state_dict(target["m"])
    set_optimizer_state_dict(other, second, target["o"])
    train(model, optimizer, range(6, 10), reduce_free=True)
    train(other, second, range(6, 10), reduce_free=True)
    for (key, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        p, q = (t.full_tensor() if isinstance(t, DTensor) else t for t in (p, q))
        assert torch.equal(p, q), f"{key} after resuming"
    if rank == 0:
        torch.save(full, f"{folder}/full.pt")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_fsdp2_equals_one_process(tmp_path: Path) -> None:
    mp.spawn(worker, (free_port(), str(tmp_path)), nprocs=WORLD, join=True)
    for number, case in enumerate(SHARDED):
        model = build()
        train(model, case.make(model.parameters(), lr=0.01), range(6), reduce_free=False)
        sharded = torch.load(tmp_path / str(number) / "full.pt", weights_only=True)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(
                sharded[key],
                value,
                rtol=1e-5,
                atol=1e-6,
                msg=lambda text, label=f"{case.name}: {key}": f"{label}: {text}",
            )
