"""FLUX.1 as diffusers has it: latents are packed 2 x 2 into tokens, guidance is an embedding."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import FluxPipeline
from torch import Tensor

from mixgrpo.models.base import times
from mixgrpo.models.comfyui import FLUX_LAYERS
from mixgrpo.models.options import ModelOptions
from mixgrpo.models.pipeline import Device, Parts, PipelineModel, Row
from mixgrpo.models.vae import ImageVae
from mixgrpo.shapes.flux import LORA_TARGETS


class FluxModel(PipelineModel):
    """A `FluxPipeline`: x is [B, height / 2f * width / 2f, 4 * channels], f the VAE's factor."""

    text_encoders = ("text_encoder", "text_encoder_2")
    tokenizer = "tokenizer_2"
    lora_targets = LORA_TARGETS
    comfyui_layers = FLUX_LAYERS

    def __init__(self, pipeline: FluxPipeline, options: ModelOptions) -> None:
        """Take a loaded pipeline and freeze it."""
        super().__init__(pipeline, options)
        self.vae = ImageVae(pipeline.vae)
        high, wide = (side // (2 * self.vae.factor) for side in (options.height, options.width))
        self.latent_shape = (high * wide, pipeline.transformer.config.in_channels)
        self._image_ids = FluxPipeline._prepare_latent_image_ids(1, high, wide, self.device, torch.float32)

    @classmethod
    def side_multiple(cls, parts: Parts) -> int:
        """Return the VAE's factor times the packing's 2."""
        return 2 ** (len(parts["vae"]["block_out_channels"]) - 1) * 2

    @staticmethod
    def encode_rows(pipeline: Any, prompts: Sequence[str], *, max_sequence_length: int, device: Device) -> list[Row]:
        """Encode with T5 (padded to `max_sequence_length`, as the pipeline does) and CLIP (pooled)."""
        text, pooled, _ = pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            device=device,
            max_sequence_length=max_sequence_length,
        )
        return [{"text": one, "pooled": vector} for one, vector in zip(text, pooled, strict=True)]

    def predict(self, x: Tensor, sigma: float, tensors: Row) -> Tensor:
        """Call the transformer; FLUX.1-schnell takes no guidance."""
        text = tensors["text"]
        guided = cast(Any, self.transformer).config.guidance_embeds
        return self.transformer(
            hidden_states=x,
            timestep=times(x, sigma),
            guidance=times(x, self.options.guidance_scale) if guided else None,
            pooled_projections=tensors["pooled"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=x.device),
            img_ids=self._image_ids,
            return_dict=False,
        )[0]

    def pack(self, latents: Tensor) -> Tensor:
        """Pack [B, channels, h, w]."""
        return FluxPipeline._pack_latents(latents, *latents.shape)

    def unpack(self, x: Tensor) -> Tensor:
        """Unpack to [B, channels, h, w]."""
        return FluxPipeline._unpack_latents(x, self.options.height, self.options.width, self.vae.factor)
