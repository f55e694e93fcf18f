"""Two rewards that need no weights and no words: examples to start from, and something to test with."""

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.base import mask_unscorable


class JpegReward:
    """How well a picture compresses, whatever the prompt says.

    The score is 1 - (bytes of the picture as JPEG) / (bytes of its pixels), in [0, 1]: near 1 for a flat
    picture, about 0.6 for coloured noise at quality 95. A JPEG has some 600 bytes of tables, so very small pictures
    score lower throughout.
    """

    name = "jpeg"

    def __init__(self, *, quality: int = 95) -> None:
        """Take the JPEG `quality`, 1 to 95.

        Raises:
            ConfigError: `quality` is out of range.
        """
        if not 1 <= quality <= 95:
            raise ConfigError(f"the jpeg reward's quality must be from 1 to 95, got {quality}")
        self.quality = quality

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images [B, 3, H, W] in [0, 1]: [B], in [0, 1]."""
        pixels = (images.nan_to_num().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
        scores = [max(0.0, 1 - self._encoded_size(picture) / picture.numel()) for picture in pixels]
        return mask_unscorable(torch.tensor(scores), images)

    def _encoded_size(self, picture: Tensor) -> int:
        file = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=self.quality)
        return file.tell()


class BrightnessReward:
    """The mean of all pixels and channels, in [0, 1], whatever the prompt says."""

    name = "brightness"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images [B, 3, H, W] in [0, 1]: [B], in [0, 1]."""
        return images.mean(dim=(1, 2, 3))
