"""The cells of a study: one training each, named by the hash of everything that decides its result."""

import dataclasses
import hashlib
import itertools
import json
from typing import Any

from hf_proxadam.study import store
from hf_proxadam.study.spec import Study, Training

# Raised when the same spec begins to mean another training, so that no old result is taken for a new one.
CELL_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One training: a point of the grid together with all that is common to the study."""

    optimizer: str
    optim: str
    optim_args: str | None
    learning_rate: float
    weight_decay: float
    seed: int
    task: str
    model: dict[str, Any]
    training: Training
    record_scales_every: int
    variant: str = ""
    loss_multiplier: float = 1.0

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the whole spec.

        Fields that came later are left out where they have their defaults, so that older cells keep their names.
        """
        spec = {"version": CELL_VERSION, "max_grad_norm": 0.0, **dataclasses.asdict(self)}
        spec["training"] = self.training.as_dict()
        for name in ("variant", "loss_multiplier"):
            if spec[name] == getattr(Cell, name):
                del spec[name]
        text = json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def point(self) -> dict[str, Any]:
        """What differs between the cells of one study."""
        return {key: getattr(self, key) for key in store.CELL_COLUMNS}

    @property
    def title(self) -> str:
        """The cell in one line, for people."""
        return title(self.point)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Cell":
        """Undo `dataclasses.asdict`: how a cell gets to a worker."""
        return cls(**{**data, "training": Training(**data["training"])})


def grid(study: Study) -> list[Cell]:
    """All cells of a study, in the order in which they run.

    Seeds come outermost: when the first seed is through, the whole grid has been seen once. Variants come next, so that
    a worker reads the data of each but once per seed.
    """
    return [
        Cell(
            optimizer=optimizer.label,
            optim=optimizer.name,
            optim_args=optimizer.optim_args,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            seed=seed,
            task=study.task,
            model={**study.model, **study.model_variants.get(variant, {})},
            training=study.training,
            record_scales_every=study.record_scales_every,
            variant=variant,
            loss_multiplier=loss_multiplier,
        )
        for seed, variant, loss_multiplier, learning_rate, weight_decay, optimizer in itertools.product(
            study.seeds,
            study.model_variants or ("",),
            study.loss_multipliers,
            study.learning_rates,
            study.weight_decays,
            study.optimizers,
        )
    ]


def title(point: dict[str, Any]) -> str:
    """A cell's point in one line, for people."""
    where = f"lr {point['learning_rate']:g}, decay {point['weight_decay']:g}, seed {point['seed']}"
    return ", ".join(part for part in (point["optimizer"], store.setting(point), where) if part)
