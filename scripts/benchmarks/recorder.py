"""What recording gradient scales costs, against the same loop without it and against plain per-tensor statistics.

Steps of three kinds take turns: as they are, recorded, and with a plain loop that calls `.norm().item()` and
`torch.histc` on each gradient. What a recorded step takes more than the step as it is just before it is what recording
costs, so that a machine that slows down slows down both; it is given in percent of the steps from one record to the
next, and in multiples of reading all gradients once. The writing of the records is counted in. On a machine that others
use too, `--clock processor` counts only the time in which this process ran.

    python scripts/benchmarks/recorder.py
    python scripts/benchmarks/recorder.py --model tiny --batch_size 16 --rounds 100
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_proxadam.scales import GradientScaleRecorder

MODELS = {
    # The size of sentence-transformers' MiniLM-L6: 22.7 M parameters in 104 tensors.
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}

NEVER = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), default="minilm")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="tokens per example")
    parser.add_argument("--every", type=int, default=10, help="steps from one record to the next")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each kind")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--exact_histograms", action="store_true")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    args = parser.parse_args()
    for name in ("batch_size", "length", "every", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, but it is {getattr(args, name)}.")
    clock = time.perf_counter if args.clock == "wall" else time.process_time

    torch.manual_seed(0)
    device = torch.device(args.device)
    model = BertForSequenceClassification(BertConfig(**MODELS[args.model])).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens = torch.randint(1000, 30000, (args.batch_size, args.length), device=device)
    labels = torch.randint(0, 2, (args.batch_size,), device=device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def step(before_update: Callable[[], object] | None = None) -> float:
        wait()
        start = clock()
        model(input_ids=tokens, labels=labels).loss.backward()
        if before_update is not None:
            before_update()
        optimizer.step()
        optimizer.zero_grad()
        wait()
        return clock() - start

    def plainly() -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.norm().item()
                torch.histc(parameter.grad.abs().clamp_min(1e-45).log2(), 278, -149, 129).sum().item()

    def median_time(function: Callable[[], object], repeats: int = 9) -> float:
        times = []
        for _ in range(repeats):
            wait()
            start = clock()
            function()
            wait()
            times.append(clock() - start)
        return statistics.median(times)

    without, recorded, plain = [], [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        GradientScaleRecorder(
            model, optimizer, folder, NEVER, exact_histograms=args.exact_histograms, records_per_part=args.rounds + 1
        ) as recorder,
    ):
        for _ in range(args.rounds + 1):
            without.append(step())
            recorder.every = 1
            recorded.append(step() - without[-1])
            recorder.every = NEVER
            without.append(step())
            plain.append(step(plainly) - without[-1])
        start = clock()
        recorder.flush()
        writing = (clock() - start) / (args.rounds + 1)

    model(input_ids=tokens, labels=labels).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    read_once = median_time(lambda: [gradient.sum() for gradient in gradients])
    # The first round of each is a warm-up.
    seconds = statistics.median(without[2:])
    record = statistics.median(recorded[1:]) + writing
    plain_record = statistics.median(plain[1:])
    result = {
        "device": str(device),
        "clock": args.clock,
        "threads": torch.get_num_threads(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tensors": len(gradients),
        "step_seconds": seconds,
        "record_seconds": record,
        "of_which_writing_seconds": writing,
        "plain_record_seconds": plain_record,
        "reading_gradients_once_seconds": read_once,
        "overhead_percent": 100 * record / (args.every * seconds),
        "overhead_plain_percent": 100 * plain_record / (args.every * seconds),
        "record_in_readings": record / read_once,
        "plain_record_in_readings": plain_record / read_once,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
