"""DenseNet-BC of Huang et al. (arXiv 1608.06993) for CIFAR, with and without batch normalisation."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from hf_proxadam.tasks.paper_nets.resnet import check_normalization, normalization_layer

BOTTLENECK = 4  # "B": 1x1 convolutions narrow the input to 4 k channels
COMPRESSION = 2  # "C": transitions halve the channels


class CifarDenseNetConfig(PretrainedConfig):
    """Configuration of `CifarDenseNetForImageClassification`.

    Args:
        depth: number of weighted layers, 6n + 4: 40, 100, 190, ...
        growth_rate: channels that a layer adds, k.
        num_channels: channels of the images.
        normalization: `batch`, or `none` for a net without normalisation layers.

    Raises:
        ValueError: an option is out of its range.
    """

    model_type = "cifar_densenet"

    def __init__(
        self,
        depth: int = 100,
        growth_rate: int = 12,
        num_channels: int = 3,
        normalization: str = "batch",
        **kwargs: Any,
    ) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth is {depth}; a DenseNet-BC has 6n + 4 layers: 10, 40, 100, 190, ...")
        for name, value in (("growth_rate", growth_rate), ("num_channels", num_channels)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        check_normalization(normalization, "DenseNet-BC")
        self.depth = depth
        self.growth_rate = growth_rate
        self.num_channels = num_channels
        self.normalization = normalization
        super().__init__(**kwargs)


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution, each after normalisation and ReLU; what comes out joins what came in."""

    def __init__(self, inputs: int, growth_rate: int, normalization: str) -> None:
        super().__init__()
        self.norm1 = normalization_layer(normalization, inputs)
        self.conv1 = nn.Conv2d(inputs, BOTTLENECK * growth_rate, 1, bias=False)
        self.norm2 = normalization_layer(normalization, BOTTLENECK * growth_rate)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth_rate, growth_rate, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, inputs, height, width) to (batch, inputs + growth_rate, height, width)."""
        new = self.conv1(functional.relu(self.norm1(x)))
        new = self.conv2(functional.relu(self.norm2(new)))
        return torch.cat([x, new], dim=1)


class Transition(nn.Module):
    """Between dense blocks: half the channels, half the height and width."""

    def __init__(self, inputs: int, normalization: str) -> None:
        super().__init__()
        self.norm = normalization_layer(normalization, inputs)
        self.conv = nn.Conv2d(inputs, inputs // COMPRESSION, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, inputs, height, width) to (batch, inputs / 2, height / 2, width / 2)."""
        return functional.avg_pool2d(self.conv(functional.relu(self.norm(x))), 2)


class CifarDenseNetForImageClassification(PreTrainedModel):
    """A DenseNet-BC for small images: three dense blocks, global mean, one linear layer.

    Weights are drawn as in the experiments of the paper: He's normal initialisation over the outputs for convolutions,
    torch's default for the linear layer.
    """

    config_class = CifarDenseNetConfig
    base_model_prefix = "net"
    main_input_name = "pixel_values"
    _no_split_modules = ("DenseLayer",)

    def __init__(self, config: CifarDenseNetConfig) -> None:
        super().__init__(config)
        channels = 2 * config.growth_rate
        self.conv = nn.Conv2d(config.num_channels, channels, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        for block in range(3):
            if block:
                layers.append(Transition(channels, config.normalization))
                channels //= COMPRESSION
            for _ in range((config.depth - 4) // 6):
                layers.append(DenseLayer(channels, config.growth_rate, config.normalization))
                channels += config.growth_rate
        self.layers = nn.ModuleList(layers)
        self.norm = normalization_layer(config.normalization, channels)
        self.classifier = nn.Linear(channels, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            # What nn.Linear.reset_parameters does, through functions that transformers guards while it loads.
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **_: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """Classify images.

        Args:
            pixel_values: (batch, num_channels, height, width), both at least 4.
            labels: (batch,), int64; with them the output has the mean cross-entropy as `loss`.
        """
        x = self.conv(pixel_values)
        for layer in self.layers:
            x = layer(x)
        logits = self.classifier(functional.relu(self.norm(x)).mean(dim=(2, 3)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
