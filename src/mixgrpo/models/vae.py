"""The autoencoders of the families, with each one's scaling of its latents."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d


class Vae(Protocol):
    """An autoencoder between pixels in [-1, 1] and latents as the transformer takes them, scaled but not packed."""

    factor: int
    """Pixels of a side that become one cell."""

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents into float32 pixels: [B, 3, H, W], of videos [B, F, 3, H, W]."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Turn pixels [B, 3, H, W] into float32 latents: the mode of the posterior."""
        ...

    def cells(self, masks: Tensor) -> Tensor:
        """Return float32 latents, not scaled, that are 1 where a cell has a pixel marked in `masks` [B, 1, H, W]."""
        ...


class ImageVae:
    """`AutoencoderKL`, whose config has a factor and an offset for all channels."""

    def __init__(self, module: Any) -> None:
        """Take the part `vae` of a pipeline."""
        self.module = module
        self.factor = 2 ** (len(module.config.block_out_channels) - 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents [B, C, h, w] into pixels."""
        config = self.module.config
        latents = (latents / config.scaling_factor + (config.shift_factor or 0.0)).to(self.module.dtype)
        return self.module.decode(latents, return_dict=False)[0].float()

    def encode(self, pixels: Tensor) -> Tensor:
        """Turn pixels into latents [B, C, h, w]."""
        config = self.module.config
        latents = self.module.encode(pixels.to(self.module.dtype), return_dict=False)[0].mode().float()
        return (latents - (config.shift_factor or 0.0)) * config.scaling_factor

    def cells(self, masks: Tensor) -> Tensor:
        """Mark cells [B, C, h, w]."""
        return max_pool2d(masks, self.factor).expand(-1, self.module.config.latent_channels, -1, -1)


class BatchNormVae(ImageVae):
    """`AutoencoderKLFlux2`, which has a mean and a variance for each channel of each of the four cells of a token."""

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents [B, C, h, w] into pixels."""
        mean, std = self._statistics(latents)
        return self.module.decode((latents * std + mean).to(self.module.dtype), return_dict=False)[0].float()

    def encode(self, pixels: Tensor) -> Tensor:
        """Turn pixels into latents [B, C, h, w]."""
        latents = self.module.encode(pixels.to(self.module.dtype), return_dict=False)[0].mode().float()
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of every number of `latents`, [C, h, w]."""
        norm = self.module.bn
        _, channels, high, wide = latents.shape
        mean, std = norm.running_mean.float(), torch.sqrt(norm.running_var.float() + self.module.config.batch_norm_eps)
        mean, std = (numbers.view(channels, 2, 2).repeat(1, high // 2, wide // 2) for numbers in (mean, std))
        return mean, std
