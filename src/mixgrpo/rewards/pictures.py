"""Pictures as the CLIP family is shown them: 8 bits, the shorter side resized, the middle cut out, normalised."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def as_pictures(images: Tensor) -> list[Image.Image]:
    """Turn images [B, 3, H, W] in [0, 1] into pictures of 8 bits, as a saved file holds them.

    Pixels that are not finite become numbers too: the score of such a picture is NaN whatever is seen in it.
    """
    pixels = (images.detach().nan_to_num().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pixels]


def clip_pixels(pictures: Sequence[Image.Image], size: int) -> Tensor:
    """Turn RGB pictures into what CLIP's image towers take: float32 [B, 3, size, size].

    Bicubic on 8 bits with Pillow, then the middle, with the rounding of the preprocessing that CLIP was published
    with (torchvision's: the longer side is rounded down, half a pixel of the cut goes to the even side).
    """
    return torch.stack([_middle(picture, size) for picture in pictures])


def _middle(picture: Image.Image, size: int) -> Tensor:
    shorter = min(picture.size)
    width, height = (size if side == shorter else int(size * side / shorter) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    mean, std = (torch.tensor(figures)[:, None, None] for figures in (_MEAN, _STD))
    return (torch.from_numpy(pixels).permute(2, 0, 1) - mean) / std
