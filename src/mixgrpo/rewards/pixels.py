"""Pictures as the image encoders of CLIP are shown them, equal to the pixel to what the published rewards see.

All start from what a saved file would hold: colours rounded to 8 bits. From there the published codes differ:

- `crop`: Pillow's bicubic filter scales the shorter side, rounding to 8 bits again, then the middle is cut out. Where
  an odd number of pixels is cut away, transformers (PickScore) leaves the smaller half at the top and left.
- `crop_even`: the same by torchvision (OpenAI's and open_clip's loaders), which rounds half a pixel to the even number.
- `squash`: both sides are scaled at once by Pillow, whatever that does to the proportions (Apple's DFN models).
- `pad`: HPSv2's. torch's antialiased bicubic filter scales the longer side of the picture as floats, so nothing is
  rounded and an overshoot of the filter stays; the shorter side is filled up with black, the odd pixel at the bottom
  and right. That is what torchvision from 0.17 on does in that code; before, it did not smooth when shrinking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mixgrpo.rewards.spelling import as_saved

Fit = Literal["crop", "crop_even", "squash", "pad"]
"""How a picture becomes a square."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue over OpenAI's training pictures: what all CLIP models used here are normalised by."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviation."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """From pictures in [0, 1] of any size to the normalised squares that an image encoder takes."""

    size: int
    """Side of the square."""
    fit: Fit
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare images [B, 3, H, W] in [0, 1], which stay as they are: float32 [B, 3, size, size] on the CPU.

        Pixels that are not finite become numbers; the score of such a picture is NaN whatever they are.
        """
        return self._normalised([self._square(picture) for picture in as_saved(images)])

    def of_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Prepare RGB pictures of any sizes: float32 [B, 3, size, size]."""
        return self._normalised([self._square(_as_tensor(picture)) for picture in pictures])

    def _normalised(self, squares: list[Tensor]) -> Tensor:
        mean, std = (torch.tensor(figures).view(3, 1, 1) for figures in (self.mean, self.std))
        return (torch.stack(squares) - mean) / std

    def _square(self, picture: Tensor) -> Tensor:
        height, width = picture.shape[-2:]
        if self.fit == "pad":
            return _pad(picture, self.size)
        if self.fit == "squash":
            return _scale(picture, self.size, self.size)
        shorter = min(height, width)
        scaled = _scale(picture, self.size * height // shorter, self.size * width // shorter)
        top, left = (self._margin(side - self.size) for side in scaled.shape[-2:])
        return scaled[:, top : top + self.size, left : left + self.size]

    def _margin(self, cut: int) -> int:
        """Return how many of `cut` pixels go at the top or left."""
        return cut // 2 if self.fit == "crop" else round(cut / 2)


def _scale(picture: Tensor, height: int, width: int) -> Tensor:
    """Scale a picture [3, H, W] of 8-bit colours in [0, 1] as Pillow does, to 8-bit colours in [0, 1]."""
    (whole,) = as_pictures(picture[None])
    return _as_tensor(whole.resize((width, height), Image.Resampling.BICUBIC))


def as_pictures(images: Tensor) -> list[Image.Image]:
    """Turn images [B, 3, H, W] in [0, 1] into pictures of 8 bits, as a saved file holds them.

    Pixels that are not finite become numbers too: the score of such a picture is NaN whatever is seen in it.
    """
    pixels = (as_saved(images) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pixels]


def _as_tensor(picture: Image.Image) -> Tensor:
    """Return a picture's colours in [0, 1]: float32 [3, H, W]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def _pad(picture: Tensor, size: int) -> Tensor:
    """Scale the longer side of a picture [3, H, W] to `size` and fill up with black: [3, size, size]."""
    scale = size / max(picture.shape[-2:])
    height, width = (max(1, round(side * scale)) for side in picture.shape[-2:])
    if scale != 1:
        picture = functional.interpolate(picture[None], size=(height, width), mode="bicubic", antialias=True)[0]
    above, left = (size - height) // 2, (size - width) // 2
    return functional.pad(picture, (left, size - width - left, above, size - height - above))
