"""HunyuanVideo as diffusers has it: latents are clips, guidance is an embedding."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch import Tensor

from mixgrpo.models.base import times
from mixgrpo.models.clips import SIDES, ClipModel
from mixgrpo.models.options import ModelOptions
from mixgrpo.models.pipeline import Device, Parts, Row
from mixgrpo.models.video_vae import VideoVae
from mixgrpo.shapes.blocks import ATTENTION_TARGETS

_THOUSAND = 1000.0
"""The transformer counts time and guidance in thousandths."""


class HunyuanVideoModel(ClipModel):
    """A `HunyuanVideoPipeline`: x is [B, channels, (F - 1) / 4 + 1, height / f, width / f], f the VAE's factor."""

    text_encoders = ("text_encoder", "text_encoder_2")
    tokenizer = "tokenizer"
    lora_targets = ATTENTION_TARGETS
    no_comfyui = (
        "ComfyUI reads adapters of HunyuanVideo only in the original checkpoint's layout, in which queries, keys and "
        "values are one layer (double_blocks.0.img_attn_qkv)"
    )

    def __init__(self, pipeline: HunyuanVideoPipeline, options: ModelOptions) -> None:
        """Take a loaded pipeline and freeze it."""
        super().__init__(pipeline, options)
        vae: Any = pipeline.vae
        self.vae = VideoVae.with_scale(vae, factor=vae.config.spatial_compression_ratio)
        self.latent_shape = self.shape_of_latents(
            channels=self.pipeline.transformer.config.in_channels,
            factor=vae.config.spatial_compression_ratio,
            frames=vae.config.temporal_compression_ratio,
        )

    @classmethod
    def side_multiple(cls, parts: Parts) -> int:
        """Return the VAE's factor times the transformer's patch, and at least 16."""
        return math.lcm(SIDES, parts["vae"].get("spatial_compression_ratio", 8) * parts["transformer"]["patch_size"])

    @classmethod
    def frame_multiple(cls, parts: Parts) -> int:
        """Return how many frames after the first become one."""
        return parts["vae"].get("temporal_compression_ratio", 4)

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt takes, those of the template counted that follow it."""
        template, cropped = DEFAULT_PROMPT_TEMPLATE["template"], DEFAULT_PROMPT_TEMPLATE["crop_start"]
        return [tokens - cropped for tokens in super().count_tokens([template.format(prompt) for prompt in prompts])]

    @staticmethod
    def encode_rows(pipeline: Any, prompts: Sequence[str], *, max_sequence_length: int, device: Device) -> list[Row]:
        """Encode with LLaMA, inside the pipeline's template and without what that adds before, and CLIP (pooled)."""
        text, pooled, mask = pipeline.encode_prompt(
            prompt=list(prompts), device=device, max_sequence_length=max_sequence_length
        )
        rows = zip(text, mask.bool(), pooled, strict=True)
        return [{"text": one[kept], "pooled": vector} for one, kept, vector in rows]

    def predict(self, x: Tensor, sigma: float, tensors: Row) -> Tensor:
        """Call the transformer, which looks at nothing beyond a prompt's end."""
        text = tensors["text"]
        guided = cast(Any, self.transformer).config.guidance_embeds
        return self.transformer(
            hidden_states=x,
            timestep=times(x, sigma * _THOUSAND),
            encoder_hidden_states=text,
            encoder_attention_mask=tensors.get("mask", torch.ones_like(text[..., 0], dtype=torch.bool)),
            pooled_projections=tensors["pooled"],
            guidance=times(x, self.options.guidance_scale * _THOUSAND) if guided else None,
            return_dict=False,
        )[0]
