"""The one table of names: what `TrainingArguments(optim=...)` and `get_optimizer` know beside transformers' own."""

from dataclasses import dataclass, field
from typing import Any

from ..optim import AdamL2, ProxAdam, ScaleFreeAdamW
from ..optim.adam_family import AdamFamily


@dataclass(frozen=True, kw_only=True)
class OptimizerEntry:
    """One registered name.

    Attributes:
        name: as given to `--optim`.
        cls: the optimizer's class.
        defaults: options that this name binds; `optim_args` may override them, unless they are what it stands for.
        description: one line.
        extra: the extra of this package that it needs (`pip install hf_proxadam[EXTRA]`), or None.
    """

    name: str
    cls: type[AdamFamily]
    defaults: dict[str, Any] = field(default_factory=dict)
    description: str
    extra: str | None = None


_ENTRIES = (
    OptimizerEntry(
        name="proxadam",
        cls=ProxAdam,
        description="Adam with an exact proximal step on the regulariser (l2, l1, elastic_net, group_lasso, l2_start)",
    ),
    OptimizerEntry(
        name="proxadam_scale_free",
        cls=ProxAdam,
        defaults={"eps": 0.0},
        description="proxadam with eps = 0: updates do not change with the scale of any coordinate's gradients",
    ),
    OptimizerEntry(
        name="adamw_scale_free",
        cls=ScaleFreeAdamW,
        defaults={"eps": 0.0},
        description="AdamW with eps = 0, exact over the range of float32",
    ),
    OptimizerEntry(
        name="adamw_atan2",
        cls=ScaleFreeAdamW,
        defaults={"eps": 0.0, "direction": "atan2"},
        description="AdamW with the direction atan2(m, sqrt(v)), scale-free without a division",
    ),
    OptimizerEntry(
        name="adam_l2",
        cls=AdamL2,
        description="Adam with weight decay coupled into the gradient (torch.optim.Adam's), the baseline",
    ),
)

CATALOG: dict[str, OptimizerEntry] = {entry.name: entry for entry in _ENTRIES}
