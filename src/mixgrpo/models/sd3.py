"""Stable Diffusion 3 and 3.5 as diffusers have them: latents are images, guidance is classifier-free."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from mixgrpo.models.base import times
from mixgrpo.models.comfyui import SD3_LAYERS
from mixgrpo.models.options import ModelOptions
from mixgrpo.models.pipeline import Device, Parts, PipelineModel, Row
from mixgrpo.models.schedule import scheduler_sigmas
from mixgrpo.models.vae import ImageVae
from mixgrpo.shapes.blocks import ATTENTION_TARGETS

_TIMES = 1000.0
"""The transformer counts time in thousandths."""


class StableDiffusion3Model(PipelineModel):
    """A `StableDiffusion3Pipeline`: x is [B, channels, height / f, width / f], f the VAE's factor."""

    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizer = "tokenizer_3"
    lora_targets = ATTENTION_TARGETS
    comfyui_layers = SD3_LAYERS

    def __init__(self, pipeline: StableDiffusion3Pipeline, options: ModelOptions) -> None:
        """Take a loaded pipeline and freeze it."""
        super().__init__(pipeline, options)
        self.vae = ImageVae(pipeline.vae)
        factor = self.vae.factor
        channels = pipeline.transformer.config.in_channels
        self.latent_shape = (channels, options.height // factor, options.width // factor)

    @classmethod
    def side_multiple(cls, parts: Parts) -> int:
        """Return the VAE's factor times the transformer's patch."""
        return 2 ** (len(parts["vae"]["block_out_channels"]) - 1) * parts["transformer"]["patch_size"]

    @classmethod
    def guides(cls, guidance_scale: float, index: Mapping[str, Any]) -> bool:
        """Return whether the scale asks for a second call."""
        del index
        return guidance_scale > 1.0

    @property
    def image_tokens(self) -> int:
        """Patches of an image."""
        patch = self.pipeline.transformer.config.patch_size
        return (self.latent_shape[1] // patch) * (self.latent_shape[2] // patch)

    def sigmas(self, num_steps: int) -> tuple[float, ...]:
        """Return the pipeline's schedule, whose times come from the scheduler."""
        return scheduler_sigmas(self.pipeline.scheduler.config, num_steps, tokens=self.image_tokens)

    @staticmethod
    def encode_rows(pipeline: Any, prompts: Sequence[str], *, max_sequence_length: int, device: Device) -> list[Row]:
        """Encode with both CLIPs (padded to 77) and T5 (padded to `max_sequence_length`), side by side as one text."""
        text, _, pooled, _ = pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
        )
        return [{"text": one, "pooled": vector} for one, vector in zip(text, pooled, strict=True)]

    def predict(self, x: Tensor, sigma: float, tensors: Row) -> Tensor:
        """Call the transformer."""
        return self.transformer(
            hidden_states=x,
            timestep=times(x, sigma * _TIMES),
            encoder_hidden_states=tensors["text"],
            pooled_projections=tensors["pooled"],
            return_dict=False,
        )[0]

    def pack(self, latents: Tensor) -> Tensor:
        """Leave latents as they are."""
        return latents

    def unpack(self, x: Tensor) -> Tensor:
        """Leave latents as they are."""
        return x
