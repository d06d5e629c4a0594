"""What test_ways_of_running starts: a script that trains a tiny Llama, made from a config, in one way with each name.

    python ways_worker.py WAY FOLDER NAME...

First each NAME is trained without a break (FOLDER/NAME/whole.pt), and once more, stopped at half the steps; then, in
new processes, it goes on from there (FOLDER/NAME/resumed.pt). The files hold the parameters and what really ran; the
gradient scales are recorded beside them. Ranks find one another by torchrun's environment variables; they are forks, so
that the libraries are imported once.
"""

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import hf_proxadam  # noqa: F401  (importing it is what registers the names)
from hf_proxadam.scales import GradientScaleCallback
from hf_proxadam.trainer.ending import leave

STEPS, STOP = 20, 10
GLOBAL_BATCH, ROWS, LENGTH, VOCABULARY = 8, 24, 16, 32  # 3 steps make an epoch: the stop is inside one


def sharding(state_dict_type: str) -> dict[str, Any]:
    # Before 5, the Trainer left version and form to what `accelerate launch` puts into the environment.
    environment = {"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": state_dict_type}
    options = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 2, "state_dict_type": state_dict_type}}
    return {"processes": 2, "environment": environment, "options": options}


def zero(stage: int) -> dict[str, Any]:
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage},
    }
    return {"processes": 2, "options": {"deepspeed": config}}


# How many processes, and what is added to TrainingArguments. The global batch is the same in all.
WAYS: dict[str, dict[str, Any]] = {
    "single": {"processes": 1, "options": {}},
    "accumulation": {"processes": 1, "options": {"gradient_accumulation_steps": 2}},
    "ddp": {"processes": 2, "options": {}},
    "ddp_accumulation": {"processes": 2, "options": {"gradient_accumulation_steps": 2}},
    "fsdp2_sharded": sharding("SHARDED_STATE_DICT"),
    "fsdp2_full": sharding("FULL_STATE_DICT"),
    "zero1": zero(1),
    "zero2": zero(2),
    "zero3": zero(3),
}


def allow_fsdp_on_the_cpu() -> None:
    """accelerate leaves an FSDP plugin out on the CPU: do what it does on other devices."""
    original = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


def resume_on_the_cpu_before_transformers_5() -> None:
    """Its Trainer loads optimizer.pt to its device, on several processes "cpu:0", which torch does not know."""
    torch.serialization.register_package(0, lambda _: None, lambda storage, at: storage if at == "cpu:0" else None)


class Stop(TrainerCallback):
    """Stops at a step, whatever the schedule was made for."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= STOP


def tiny_llama() -> LlamaForCausalLM:
    """No biases: those of keys have no gradient but rounding errors, which a scale-free update would follow."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=False,
        )
    )


def rows() -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


def arguments(way: str, name: str, folder: Path, **more: Any) -> TrainingArguments:
    """What a user gives; WAY is only the launch and a few options."""
    processes, options = WAYS[way]["processes"], WAYS[way]["options"]
    defaults = {
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "warmup_steps": 3,
        "lr_scheduler_type": "cosine",
        "max_steps": STEPS,
        "max_grad_norm": 0.0,  # clipping by norm would hide a wrong factor
        "save_steps": STOP,
        "per_device_train_batch_size": GLOBAL_BATCH // processes // options.get("gradient_accumulation_steps", 1),
        "seed": 0,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    return TrainingArguments(output_dir=str(folder), optim=name, **{**defaults, **options, **more})


def trainer(way: str, name: str, folder: Path) -> Trainer:
    # DeepSpeed is refused by the recorder.
    callbacks = [] if way.startswith("zero") else [GradientScaleCallback(every=5, exact_histograms=True)]
    return Trainer(tiny_llama(), arguments(way, name, folder), train_dataset=rows(), callbacks=callbacks)


def parameters(used: Trainer) -> dict[str, torch.Tensor]:
    """All parameters, whole, by the names that they have on one process. Every rank must call this."""
    if used.is_deepspeed_enabled:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(used.model.parameters())):
            return {k: p.detach().clone() for k, p in used.model.named_parameters()}
    named = used.accelerator.unwrap_model(used.model).named_parameters()
    return {k: p.full_tensor() if isinstance(p, DTensor) else p.detach().clone() for k, p in named}


def what_ran(used: Trainer) -> dict[str, Any]:
    optimizer = used.optimizer.optimizer
    if used.is_deepspeed_enabled:
        optimizer = optimizer.optimizer
    states = list(optimizer.state.values())
    return {
        "class": type(optimizer).__name__,
        "eps": optimizer.param_groups[0]["eps"],
        "initial_lr": optimizer.param_groups[0]["initial_lr"],
        "processes": used.args.world_size,
        "distributed_type": used.accelerator.distributed_type.value,
        "steps": sorted({float(state["step"]) for state in states}),
        "moments_here": sum(getattr(s["exp_avg"], "_local_tensor", s["exp_avg"]).numel() for s in states),
    }


def train(way: str, part: str, folder: Path, names: list[str]) -> NoReturn:
    """What one rank does, and ends with."""
    torch.set_num_threads(1)
    if way.startswith("fsdp2"):
        allow_fsdp_on_the_cpu()
    resume_on_the_cpu_before_transformers_5()
    for name in names:
        if part == "whole":
            used = trainer(way, name, folder / name / "whole")
            used.train()
            stopped = trainer(way, name, folder / name / "stopped")
            stopped.add_callback(Stop())
            stopped.train()
            assert stopped.state.global_step == STOP
        else:
            used = trainer(way, name, folder / name / "stopped")
            used.train(resume_from_checkpoint=True)
        assert used.state.global_step == STEPS
        result = {"parameters": parameters(used), "ran": what_ran(used)}
        if used.is_world_process_zero():
            torch.save(result, folder / name / f"{part}.pt")
    leave()


def launch(way: str, part: str, folder: Path, names: list[str]) -> None:
    """Fork the ranks, as torchrun starts them; where one fails, the others would wait for it, so they are ended."""
    world = WAYS[way]["processes"]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks = {}
    for rank in range(world):
        child = os.fork()
        if child:
            ranks[child] = rank
            continue
        if world > 1:
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            os.environ.update({k: str(v) for k, v in {**where, "RANK": rank, "LOCAL_RANK": rank}.items()})
        os.environ.update(WAYS[way].get("environment", {}))
        train(way, part, folder, names)
    while ranks:
        ended, status = os.wait()
        rank = ranks.pop(ended)
        if status != 0:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"rank {rank} of {way!r} failed in part {part!r}")


if __name__ == "__main__":
    for part in ("whole", "resumed"):
        launch(sys.argv[1], part, Path(sys.argv[2]), sys.argv[3:])
