"""One process of test_distributed: trains a small model and records. Arguments: way, rank, world size, folder."""

import sys
from pathlib import Path

import torch
import torch.distributed
from torch import nn

from hf_proxadam.scales import GradientScaleRecorder
from hf_proxadam.trainer.ending import leave


def main(way: str, rank: int, world: int, folder: Path) -> None:
    if way == "single":
        train(way, rank, world, folder)
        return
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(folder / "rendezvous"), world), rank=rank, world_size=world
    )
    train(way, rank, world, folder)
    leave()


def train(way: str, rank: int, world: int, folder: Path) -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(6, 33), nn.ReLU(), nn.Linear(33, 33), nn.ReLU(), nn.Linear(33, 1))
    if way == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    if way in ("fsdp2", "hsdp"):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        shape, names = ((world,), ("shard",)) if way == "fsdp2" else ((world, 1), ("replicate", "shard"))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recorder = GradientScaleRecorder(model, optimizer, folder / "scales", every=2, exact_histograms=True)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 6, generator=generator)
        target = x.sum(1, keepdim=True)
        mine = slice(None) if way == "single" else slice(rank * 8 // world, (rank + 1) * 8 // world)
        nn.functional.mse_loss(model(x[mine]), target[mine]).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        recorder.clipped(norm, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    recorder.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
