"""The one table of optimizers that the tests of hf_proxadam.optim are crossed with; no registered name is left out."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from hf_proxadam.optim import reference
from hf_proxadam.trainer.catalog import CATALOG


@dataclass(frozen=True)
class Case:
    """An optimizer with options, and what the reference needs to know to do the same."""

    name: str
    cls: type[torch.optim.Optimizer]
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, params: Any, **options: Any) -> torch.optim.Optimizer:
        return self.cls(params, **{"weight_decay": 0.1, **self.options, **options})

    @property
    def reference_options(self) -> dict[str, Any]:
        eps = self.options.get("eps", 1e-8)
        return {"rule": self.cls.rule, "weight_decay": 0.1, **self.options, "eps": eps}

    @property
    def scale_free(self) -> bool:
        return self.options.get("eps") == 0


REGISTERED = [Case(entry.name, entry.cls, entry.defaults) for entry in CATALOG.values()]
_BY_NAME = {case.name: case for case in REGISTERED}


def _variant(base: str, **options: Any) -> Case:
    label = ",".join(f"{k}={v}" for k, v in options.items())
    return Case(f"{base}[{label}]", _BY_NAME[base].cls, {**_BY_NAME[base].options, **options})


CASES = [
    *REGISTERED,
    _variant("adamw_scale_free", eps=1e-8),
    _variant("adam_l2", eps=0.0),
    *(_variant(base, amsgrad=True) for base in _BY_NAME),
    *(_variant(base, maximize=True) for base in ("proxadam", "adamw_scale_free", "adam_l2")),
    *(
        _variant(base, decay_schedule=schedule)
        for base in ("proxadam", "adamw_scale_free")
        for schedule in ("relative", "lr_squared")
    ),
    *(_variant("proxadam", proximal=name) for name in ("l1", "elastic_net", "group_lasso")),
    _variant("proxadam", proximal="l2_start", start="current"),
    _variant("proxadam_scale_free", proximal="l1"),
    _variant("proxadam", betas=(0.0, 0.9)),
]

PATHS: dict[str, dict[str, Any]] = {
    "pieces": {},
    "single": {"foreach": False},
    "compiled": {"compile": True},
    "capturable": {"capturable": True},
    "differentiable": {"differentiable": True},
}

all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
registered_cases = pytest.mark.parametrize("case", REGISTERED, ids=lambda case: case.name)
all_paths = pytest.mark.parametrize("path", PATHS)


def _crossed() -> list[Any]:
    """Every case x path x dtype. Compiling takes seconds: all but the registered names in float32 are slow tests."""
    rows = []
    for case in CASES:
        for path in PATHS:
            for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
                quick = path != "compiled" or (case in REGISTERED and dtype == torch.float32)
                label = f"{case.name}-{path}-{str(dtype).removeprefix('torch.')}"
                rows.append(pytest.param(case, path, dtype, id=label, marks=() if quick else pytest.mark.slow))
    return rows


case_path_dtype = pytest.mark.parametrize(("case", "path", "dtype"), _crossed())

# A warm-up from 0 (which must change nothing) and a decay; the optimizers' initial lr is the peak.
PEAK = 0.02
SCHEDULE = [0.0, 0.005, 0.01, 0.02, 0.018, 0.014, 0.009, 0.004]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def reference_run(case: Case, start: torch.Tensor, grads: list[torch.Tensor], schedule: list[float]) -> torch.Tensor:
    """What the reference makes of one tensor: `grads` at the learning rates of `schedule`."""
    options = {k: v for k, v in case.reference_options.items() if k != "start"}
    result = []
    for index, x in enumerate(start.double().flatten().tolist()):
        c = reference.Coordinate(x, start=x)
        for grad, lr in zip(grads, schedule, strict=True):
            reference.step(c, grad.double().flatten()[index].item(), lr=lr, initial_lr=PEAK, **options)
        result.append(c.x)
    return torch.tensor(result, dtype=torch.float64).reshape(start.shape)


def step_with(optimizer: torch.optim.Optimizer, params: list[torch.Tensor], seed: int = 0) -> None:
    """One step with gradients drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    optimizer.step()
