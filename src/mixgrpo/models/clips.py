"""What families that draw clips share: their latents are [B, C, F', h, w] and need no packing."""

from typing import Any

from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.models.pipeline import PipelineModel

SIDES = 16
"""The pipelines refuse sides that are no multiples of this, whatever VAE and patch need."""


class ClipModel(PipelineModel):
    """A pipeline of clips; with one frame it draws images, and only then images can be encoded."""

    def shape_of_latents(self, *, channels: int, factor: int, frames: int) -> tuple[int, ...]:
        """Return `latent_shape` where a cell has `factor` pixels a side, and `frames` frames after the first."""
        options = self.options
        return (channels, (options.num_frames - 1) // frames + 1, options.height // factor, options.width // factor)

    def pack(self, latents: Tensor) -> Tensor:
        """Leave latents as they are."""
        return latents

    def unpack(self, x: Tensor) -> Tensor:
        """Leave latents as they are."""
        return x

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode to the mode of the VAE's posterior: what `decode` undoes.

        Raises:
            ConfigError: if the model is set to draw clips.
        """
        self._check_draws_images()
        return super().encode_image(images)

    def encode_mask(self, masks: Tensor) -> Tensor:
        """Mark every cell of the VAE's grid that has a marked pixel, in all channels.

        Raises:
            ConfigError: if the model is set to draw clips.
        """
        self._check_draws_images()
        return super().encode_mask(masks)

    def call_arguments(self) -> dict[str, Any]:
        """Return the pipeline's own call, with the number of frames, also if it is 1, which no pipeline assumes."""
        return {**super().call_arguments(), "num_frames": self.options.num_frames}

    def _check_draws_images(self) -> None:
        if self.options.num_frames > 1:
            raise ConfigError(
                f"model.num_frames is {self.options.num_frames}, but only single images can be encoded and edited; "
                "set it to 1"
            )
