"""FLUX.1 as diffusers has it: latents are packed 2 x 2 into tokens, guidance is an embedding."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import FluxPipeline
from peft import get_peft_model_state_dict
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from mixgrpo.models.base import Conditioning
from mixgrpo.shapes.flux import LORA_TARGETS


def side_multiple(vae_config: Mapping[str, Any]) -> int:
    """Return what the sides of an image must be multiples of: the VAE's factor times the packing's 2."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1) * 2


class FluxModel:
    """A `FluxPipeline` as a `FlowModel`: x is [B, height / 2f * width / 2f, 4 * channels], f the VAE's factor."""

    lora_targets: tuple[str, ...] = LORA_TARGETS

    def __init__(
        self,
        pipeline: FluxPipeline,
        *,
        height: int,
        width: int,
        guidance_scale: float,
        max_sequence_length: int,
        autocast: torch.dtype | None,
    ) -> None:
        """Take a loaded pipeline and freeze it. The sides must be multiples of `side_multiple` of its VAE."""
        self.pipeline = pipeline
        self.height, self.width = height, width
        self.guidance_scale = guidance_scale
        self.max_sequence_length = max_sequence_length
        self.autocast = autocast
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.transformer):
            part.requires_grad_(False).eval()
        tokens_high, tokens_wide = (side // (2 * pipeline.vae_scale_factor) for side in (height, width))
        self._image_ids = FluxPipeline._prepare_latent_image_ids(
            1, tokens_high, tokens_wide, self.device, torch.float32
        )
        self.latent_shape: tuple[int, ...] = (
            tokens_high * tokens_wide,
            pipeline.transformer.config.in_channels,
        )

    @property
    def transformer(self) -> nn.Module:
        """The `FluxTransformer2DModel`."""
        return self.pipeline.transformer

    @transformer.setter
    def transformer(self, transformer: nn.Module) -> None:
        self.pipeline.transformer = transformer

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.pipeline.transformer.parameters()).device

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode with T5 (padded to `max_sequence_length`, as the pipeline does) and CLIP (pooled)."""
        text, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
        )
        return Conditioning({"text": cast(Tensor, text), "pooled": cast(Tensor, pooled)})

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens of T5 each prompt takes, its end included; `encode` cuts at `max_sequence_length`."""
        return [len(tokens) for tokens in self.pipeline.tokenizer_2(list(prompts), verbose=False).input_ids]

    def velocity(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """Predict the velocity; sigma goes in unrounded, as in the pipeline (in bfloat16, diffusers casts it)."""
        text, pooled = conditioning.tensors["text"], conditioning.tensors["pooled"]
        batch, dtype = len(x), self.autocast or text.dtype
        guidance = None
        if cast(Any, self.transformer).config.guidance_embeds:
            guidance = torch.full((batch,), self.guidance_scale, device=x.device)
        with torch.autocast(x.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.transformer(
                hidden_states=x.to(dtype),
                timestep=torch.full((batch,), sigma, device=x.device),
                guidance=guidance,
                pooled_projections=pooled,
                encoder_hidden_states=text,
                txt_ids=torch.zeros(text.shape[1], 3, device=x.device),
                img_ids=self._image_ids,
                return_dict=False,
            )[0]

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Unpack, undo the VAE's scaling, decode."""
        vae = self.pipeline.vae
        latents = FluxPipeline._unpack_latents(x, self.height, self.width, self.pipeline.vae_scale_factor)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        images = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return (images.float() / 2.0 + 0.5).clamp(0.0, 1.0).cpu()

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Encode to the mode of the VAE's posterior, scale, pack: what `decode` undoes."""
        if images.shape[1:] != (3, self.height, self.width):
            raise ValueError(f"images must be [batch, 3, {self.height}, {self.width}], got {tuple(images.shape)}")
        vae = self.pipeline.vae
        pixels = (images * 2.0 - 1.0).to(self.device, vae.dtype)
        latents = vae.encode(pixels, return_dict=False)[0].mode().float()
        return self._pack((latents - vae.config.shift_factor) * vae.config.scaling_factor)

    def encode_mask(self, masks: Tensor) -> Tensor:
        """Mark every cell of the VAE's grid that has a marked pixel, in all channels."""
        cells = max_pool2d(masks.to(self.device, torch.float32), self.pipeline.vae_scale_factor)
        return self._pack(cells.expand(-1, self.latent_shape[1] // 4, -1, -1)) > 0.0

    def _pack(self, latents: Tensor) -> Tensor:
        """Pack [B, channels, h, w] as `velocity` takes it."""
        return FluxPipeline._pack_latents(latents, *latents.shape)

    def save(self, folder: Path) -> None:
        """Write the pipeline as safetensors; `FluxPipeline.from_pretrained(folder)` loads it."""
        self.pipeline.save_pretrained(folder, safe_serialization=True)

    def save_lora(self, folder: Path) -> None:
        """Write the adapter alone, with its scale; `pipeline.load_lora_weights(folder)` loads it."""
        transformer = cast(Any, self.transformer)
        FluxPipeline.save_lora_weights(
            folder,
            transformer_lora_layers=cast(Any, get_peft_model_state_dict(transformer)),
            transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
            safe_serialization=True,
        )
