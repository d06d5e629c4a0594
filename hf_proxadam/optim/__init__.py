"""ProxAdam, scale-free AdamW and Adam-l2 as `torch.optim` optimizers; needs torch only."""

from .adam_family import to_torch_state_dict
from .adam_l2 import AdamL2
from .adamw import ScaleFreeAdamW
from .proxadam import ProxAdam
from .proximal import L1, L2, ElasticNet, GroupLasso, L2Start, ProximalMap

__all__ = [
    "L1",
    "L2",
    "AdamL2",
    "ElasticNet",
    "GroupLasso",
    "L2Start",
    "ProxAdam",
    "ProximalMap",
    "ScaleFreeAdamW",
    "to_torch_state_dict",
]
