"""The networks of the paper, and a ViT without layer normalisation, as models of transformers.

Importing this package registers them: `AutoModelForImageClassification.from_pretrained(FOLDER)` then loads a saved one.
"""

from collections.abc import Callable, Mapping
from functools import partial

from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig

from .densenet import CifarDenseNetConfig, CifarDenseNetForImageClassification
from .resnet import CifarResNetConfig, CifarResNetForImageClassification
from .vit import NormFreeViTConfig, NormFreeViTForImageClassification

__all__ = [
    "PAPER_NETS",
    "CifarDenseNetConfig",
    "CifarDenseNetForImageClassification",
    "CifarResNetConfig",
    "CifarResNetForImageClassification",
    "NormFreeViTConfig",
    "NormFreeViTForImageClassification",
]

PAPER_NETS: Mapping[str, Callable[..., PretrainedConfig]] = {
    **{f"resnet{depth}": partial(CifarResNetConfig, depth=depth) for depth in (20, 44, 56, 110, 218)},
    "densenet_bc_100": partial(CifarDenseNetConfig, depth=100, growth_rate=12),
}
"""Names that stand for a network of the paper with random weights."""

for _config, _model in (
    (CifarResNetConfig, CifarResNetForImageClassification),
    (CifarDenseNetConfig, CifarDenseNetForImageClassification),
    (NormFreeViTConfig, NormFreeViTForImageClassification),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)
