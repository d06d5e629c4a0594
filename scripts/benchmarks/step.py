"""Time and memory of one optimizer step on the CPU, side by side with torch's own AdamW in one process.

    python scripts/benchmarks/step.py [--repeats 30]

Two sets of tensors: "bert" (22.6 M parameters in 104 tensors, the shapes of MiniLM) and "small" (300 tensors of 64).
In each of `repeats` rounds all optimizers take one step, in a new order, for what ran before has changed the
processor's caches. Medians are printed, and the ratio of each to torch's foreach and fused AdamW. "scratch" is the most
memory that a step held beside parameters, gradients and state.
"""

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from hf_proxadam.optim import AdamL2, ProxAdam, ScaleFreeAdamW

SHAPES = {
    "bert": [(30522, 384), (512, 384), (2, 384)]
    + [(384, 384)] * 25
    + [(1536, 384)] * 6
    + [(384, 1536)] * 6
    + [(384,)] * 57
    + [(1536,)] * 6
    + [(2, 384)],
    "small": [(64,)] * 300,
}
SETTINGS: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "torch foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "torch fused": lambda p: torch.optim.AdamW(p, fused=True),
    "torch single": lambda p: torch.optim.AdamW(p, foreach=False),
    "ProxAdam": ProxAdam,
    "ScaleFreeAdamW eps=1e-8": lambda p: ScaleFreeAdamW(p, eps=1e-8),
    "AdamL2": lambda p: AdamL2(p, weight_decay=0.01),
    "ProxAdam eps=0": lambda p: ProxAdam(p, eps=0.0),
    "ScaleFreeAdamW atan2": lambda p: ScaleFreeAdamW(p, direction="atan2"),
    "ProxAdam compiled": lambda p: ProxAdam(p, compile=True),
    "ScaleFreeAdamW eps=1e-8 compiled": lambda p: ScaleFreeAdamW(p, eps=1e-8, compile=True),
    "AdamL2 compiled": lambda p: AdamL2(p, weight_decay=0.01, compile=True),
    "ProxAdam eps=0 compiled": lambda p: ProxAdam(p, eps=0.0, compile=True),
    "ProxAdam single": lambda p: ProxAdam(p, foreach=False),
}


def parameters(shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    return params


def scratch_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The peak of what one step allocates and frees again, from torch's own record of allocations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        optimizer.step()
    held = peak = 0
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(shapes: list[tuple[int, ...]], repeats: int) -> list[tuple[str, float, int]]:
    optimizers = {name: make(parameters(shapes)) for name, make in SETTINGS.items()}
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    order, shuffle = list(optimizers), random.Random(0).shuffle
    for round_number in range(repeats + 3):
        shuffle(order)
        for name in order:
            begin = time.perf_counter()
            optimizers[name].step()
            if round_number >= 3:  # the first ones create state and compile
                times[name].append(time.perf_counter() - begin)
    return [(name, statistics.median(times[name]), scratch_bytes(opt)) for name, opt in optimizers.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {args.repeats} rounds\n"
    )
    for name, shapes in SHAPES.items():
        rows = measure(shapes, args.repeats)
        by_name = {row[0]: row[1] for row in rows}
        count = sum(torch.Size(shape).numel() for shape in shapes)
        print(f"| {name}: {len(shapes)} tensors, {count:,} parameters | ms | of foreach | of fused | scratch MB |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for label, seconds, scratch in rows:
            ratios = [seconds / by_name[f"torch {peer}"] for peer in ("foreach", "fused")]
            print(f"| {label} | {seconds * 1e3:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} | {scratch / 1e6:.1f} |")
        print()


if __name__ == "__main__":
    main()
