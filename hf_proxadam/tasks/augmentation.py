"""Random crops, flips and mixup, as functions of random numbers that are drawn elsewhere: no torchvision, no state.

Every training image gets `DRAWS` numbers in [0, 1) per epoch, so that an image's crop depends on seed, epoch and image
alone: not on the number of processes or workers, and not on where a run was interrupted.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betaincinv
from torch.nn import functional

CROPS = ("none", "padded", "resized")
DRAWS = 6
_FLIP, _TOP, _LEFT, _AREA, _ASPECT, _MIXUP = range(DRAWS)
# Those of the Inception papers, which torchvision's RandomResizedCrop has as well.
_AREAS = (0.08, 1.0)
_ASPECTS = (3 / 4, 4 / 3)

Draws = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to training images.

    Args:
        random_crop: `padded`: of the image with `padding` black pixels around it, for small images; `resized`: of 8 to
            100 % of its area, with another aspect ratio, for photographs; `none`.
        padding: black pixels on each side, at least 1.
        random_flip: mirror every second image, left to right.
        mixup_alpha: mix every image and its label with the next of its batch; the share is drawn from the distribution
            Beta(alpha, alpha). 0 for no mixing.

    Raises:
        ValueError: an option is out of its range.
    """

    random_crop: str = "none"
    padding: int = 4
    random_flip: bool = False
    mixup_alpha: float = 0.0

    def __post_init__(self) -> None:
        if self.random_crop not in CROPS:
            raise ValueError(f"random_crop is {self.random_crop!r}; known are: {', '.join(CROPS)}.")
        if self.padding < 1:
            raise ValueError(f"random_crop_padding is {self.padding}; it must be at least 1.")
        if not 0 <= self.mixup_alpha < float("inf"):
            raise ValueError(f"mixup_alpha is {self.mixup_alpha}; it must be a number from 0, which is no mixing.")

    def box(self, size: tuple[int, int], draws: Draws) -> tuple[float, float, float, float]:
        """Choose what a `resized` crop of an image takes: left, top, right, bottom, for an image of (width, height)."""
        width, height = size
        area = (_AREAS[0] + (_AREAS[1] - _AREAS[0]) * draws[_AREA]) * width * height
        low, high = np.log(_ASPECTS)
        aspect = np.exp(low + (high - low) * draws[_ASPECT])
        wide, tall = min(np.sqrt(area * aspect), width), min(np.sqrt(area / aspect), height)
        left, top = (width - wide) * draws[_LEFT], (height - tall) * draws[_TOP]
        return float(left), float(top), float(left + wide), float(top + tall)

    def crop_and_flip(self, image: npt.NDArray[np.uint8], draws: Draws, out: npt.NDArray[np.uint8]) -> None:
        """Write the image (channels, side, side) to `out`, shifted as a `padded` crop shifts it, and maybe mirrored."""
        target = out[..., ::-1] if self.random_flip and draws[_FLIP] < 0.5 else out
        if self.random_crop != "padded":
            target[...] = image
            return
        side, choices = image.shape[-1], 2 * self.padding + 1
        down, right = (int(float(draws[i]) * choices) - self.padding for i in (_TOP, _LEFT))
        out[...] = 0
        target[:, max(down, 0) : side + min(down, 0), max(right, 0) : side + min(right, 0)] = image[
            :, max(-down, 0) : side - max(down, 0), max(-right, 0) : side - max(right, 0)
        ]

    def mix(
        self, images: torch.Tensor, labels: torch.Tensor, classes: int, draws: npt.NDArray[np.float32]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch.

        Args:
            images: float (batch, channels, side, side).
            labels: int64 (batch,).
            classes: how many there are.
            draws: (batch, DRAWS).

        Returns:
            Images of the same shape, and the labels' shares, float32 (batch, classes); each row adds up to 1.
        """
        drawn = betaincinv(self.mixup_alpha, self.mixup_alpha, draws[:, _MIXUP].astype(np.float64))
        share = torch.from_numpy(drawn).to(images.dtype)
        wide = share.view(-1, 1, 1, 1)
        mixed = wide * images + (1 - wide) * images.roll(1, 0)
        one_hot = functional.one_hot(labels, classes).to(images.dtype)
        return mixed, share.view(-1, 1) * one_hot + (1 - share.view(-1, 1)) * one_hot.roll(1, 0)
