"""A vision transformer without layer normalisation."""

from torch import nn
from transformers import ViTConfig, ViTForImageClassification


class NormFreeViTConfig(ViTConfig):
    """Configuration of `NormFreeViTForImageClassification`: that of a ViT."""

    model_type = "vit_norm_free"


class NormFreeViTForImageClassification(ViTForImageClassification):
    """transformers' ViT whose layer normalisations do nothing: its gradients' scales are then left to themselves."""

    config_class = NormFreeViTConfig

    def __init__(self, config: NormFreeViTConfig) -> None:
        super().__init__(config)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.LayerNorm):
                    setattr(module, name, nn.Identity())
