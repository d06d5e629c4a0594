"""A model, data and a Trainer that take milliseconds."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, **options)


class Regression(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.linear(x).squeeze(-1) - labels).square().mean()}


class Layers(torch.nn.Module):
    """Two linear layers with a norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.last = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.last(self.norm(self.first(x))).squeeze(-1) - labels).square().mean()}


def trainer(args: TrainingArguments, model: type[torch.nn.Module] = Regression, cls: type[Trainer] = Trainer) -> Any:
    torch.manual_seed(0)
    rows = [{"x": torch.randn(3), "labels": torch.randn(())} for _ in range(16)]
    return cls(model(), args, train_dataset=rows, eval_dataset=rows)
