"""Proximal and scale-free AdamW for Hugging Face Transformers.

Importing this package registers its optimizers with transformers: `TrainingArguments(optim="proxadam")`.
"""

from .optim import AdamL2, ProxAdam, ScaleFreeAdamW
from .trainer.factory import get_optimizer
from .trainer.registration import register

__version__ = "0.1.0"
__all__ = ["AdamL2", "ProxAdam", "ScaleFreeAdamW", "__version__", "get_optimizer"]

register()
