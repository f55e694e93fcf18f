"""Autoencoders of clips, which take the first frame by itself and every further `n` frames as one."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d


class VideoVae:
    """An autoencoder with a mean and a standard deviation for each channel of its latents [B, C, F', h, w]."""

    def __init__(self, module: Any, *, mean: Sequence[float], std: Sequence[float], factor: int) -> None:
        """Take the part `vae` of a pipeline, the figures of its C channels, and the pixels of a cell's side."""
        self.module = module
        self.factor = factor
        self._mean, self._std = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in (mean, std))

    @classmethod
    def with_statistics(cls, module: Any, *, factor: int) -> Self:
        """Take one whose config has `latents_mean` and `latents_std` (Wan, Qwen-Image)."""
        return cls(module, mean=module.config.latents_mean, std=module.config.latents_std, factor=factor)

    @classmethod
    def with_scale(cls, module: Any, *, factor: int) -> Self:
        """Take one whose config has a `scaling_factor` for all channels (HunyuanVideo)."""
        channels = module.config.latent_channels
        return cls(module, mean=[0.0] * channels, std=[1.0 / module.config.scaling_factor] * channels, factor=factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents [B, C, F', h, w] into pixels: [B, F, 3, H, W], or [B, 3, H, W] where there is one frame."""
        unscaled = latents * self._std.to(latents.device) + self._mean.to(latents.device)
        clips = self.module.decode(unscaled.to(self.module.dtype), return_dict=False)[0].float()
        return clips[:, :, 0] if clips.shape[2] == 1 else clips.transpose(1, 2)

    def encode(self, pixels: Tensor) -> Tensor:
        """Turn pixels [B, 3, H, W] into latents [B, C, 1, h, w]."""
        posterior = self.module.encode(pixels[:, :, None].to(self.module.dtype), return_dict=False)[0]
        latents = posterior.mode().float()
        return (latents - self._mean.to(latents.device)) / self._std.to(latents.device)

    def cells(self, masks: Tensor) -> Tensor:
        """Mark cells [B, C, 1, h, w]."""
        return max_pool2d(masks, self.factor)[:, :, None].expand(-1, self._mean.shape[1], -1, -1, -1)
