"""The CIFAR ResNets of He et al. (arXiv 1512.03385, section 4.2), with and without batch normalisation."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

NORMALIZATIONS = ("batch", "none")


def check_normalization(normalization: str, model: str) -> None:
    """Refuse what is neither `batch` nor `none`.

    Raises:
        ValueError: it is something else.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is {normalization!r}; a {model} takes {' or '.join(NORMALIZATIONS)}.")


class CifarResNetConfig(PretrainedConfig):
    """Configuration of `CifarResNetForImageClassification`.

    Args:
        depth: number of weighted layers, 6n + 2: 20, 32, 44, 56, 110, 218, ...
        width: channels of the first third; the second has twice as many, the last four times.
        num_channels: channels of the images.
        normalization: `batch`, or `none` for a net without normalisation layers.

    Raises:
        ValueError: an option is out of its range.
    """

    model_type = "cifar_resnet"

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        num_channels: int = 3,
        normalization: str = "batch",
        **kwargs: Any,
    ) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth is {depth}; a CIFAR ResNet has 6n + 2 layers: 20, 32, 44, 56, 110, 218, ...")
        for name, value in (("width", width), ("num_channels", num_channels)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        check_normalization(normalization, "CIFAR ResNet")
        self.depth = depth
        self.width = width
        self.num_channels = num_channels
        self.normalization = normalization
        super().__init__(**kwargs)


def normalization_layer(normalization: str, channels: int) -> nn.Module:
    """Make a normalisation layer over `channels`, or what does nothing in its place."""
    return nn.BatchNorm2d(channels) if normalization == "batch" else nn.Identity()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights ("option A"): every 2nd pixel, and zeros as new channels."""

    def __init__(self, inputs: int, outputs: int, normalization: str) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.padding = outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False)
        self.norm1 = normalization_layer(normalization, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = normalization_layer(normalization, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride)."""
        residual = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        shortcut = x
        if self.stride != 1:
            before = self.padding // 2
            shortcut = functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.padding - before)
            )
        return functional.relu(residual + shortcut)


class CifarResNetForImageClassification(PreTrainedModel):
    """A ResNet for small images: 3x3 convolution, three stages of n blocks each, global mean, one linear layer.

    Weights are drawn as in the experiments of the paper: He's normal initialisation (over the inputs) for convolutions
    and for the linear layer (its bias as torch does).
    """

    config_class = CifarResNetConfig
    base_model_prefix = "net"
    main_input_name = "pixel_values"
    _no_split_modules = ("BasicBlock",)

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        self.conv = nn.Conv2d(config.num_channels, config.width, 3, padding=1, bias=False)
        self.norm = normalization_layer(config.normalization, config.width)
        channels, stages = config.width, []
        for outputs in (config.width, 2 * config.width, 4 * config.width):
            blocks = []
            for _ in range((config.depth - 2) // 6):
                blocks.append(BasicBlock(channels, outputs, config.normalization))
                channels = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Linear(channels, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:  # torch's default, which from_pretrained leaves to us for a new head
                bound = 1 / math.sqrt(module.weight[0].numel())
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
        x = functional.relu(self.norm(self.conv(pixel_values)))
        for stage in self.stages:
            x = stage(x)
        logits = self.classifier(x.mean(dim=(2, 3)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
