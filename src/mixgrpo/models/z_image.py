"""Z-Image as diffusers has it, Turbo and base: one stream of image and text tokens, classifier-free guidance.

Its transformer counts time from noise (0) to data (1), predicts x0 - noise, and takes lists, since every text has a
length of its own. The pipeline's `cfg_normalization` and `cfg_truncation` are at their defaults, which do nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ZImagePipeline
from torch import Tensor

from mixgrpo.models.base import times
from mixgrpo.models.chat import as_chats
from mixgrpo.models.comfyui import Z_IMAGE_LAYERS
from mixgrpo.models.options import ModelOptions
from mixgrpo.models.pipeline import Device, Parts, PipelineModel, Row
from mixgrpo.models.vae import ImageVae
from mixgrpo.shapes.z_image import LORA_TARGETS, PATCH


class ZImageModel(PipelineModel):
    """A `ZImagePipeline`: x is [B, channels, height / f, width / f], f the VAE's factor.

    The guidance scale is counted from 0, as in the pipeline: 0 is none, and s leads s times the difference beyond the
    prompt's prediction, where other families' 1 + s does. Turbo is meant for 0.
    """

    text_encoders = ("text_encoder",)
    tokenizer = "tokenizer"
    lora_targets = LORA_TARGETS
    comfyui_layers = Z_IMAGE_LAYERS

    def __init__(self, pipeline: ZImagePipeline, options: ModelOptions) -> None:
        """Take a loaded pipeline and freeze it."""
        super().__init__(pipeline, options)
        self.vae = ImageVae(pipeline.vae)
        factor = self.vae.factor
        self.latent_shape = (pipeline.transformer.in_channels, options.height // factor, options.width // factor)

    @classmethod
    def side_multiple(cls, parts: Parts) -> int:
        """Return the VAE's factor times the transformer's patch."""
        return 2 ** (len(parts["vae"]["block_out_channels"]) - 1) * PATCH

    @classmethod
    def guides(cls, guidance_scale: float, index: Mapping[str, Any]) -> bool:
        """Return whether the scale asks for a second call."""
        del index
        return guidance_scale > 0.0

    @property
    def image_tokens(self) -> int:
        """Patches of an image, without those that the transformer adds to make them a multiple of 32."""
        return (self.latent_shape[1] // PATCH) * (self.latent_shape[2] // PATCH)

    @staticmethod
    def encode_rows(pipeline: Any, prompts: Sequence[str], *, max_sequence_length: int, device: Device) -> list[Row]:
        """Encode with the language model, in its chat format; padding is cut off."""
        texts, _ = pipeline.encode_prompt(
            prompt=list(prompts),
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
        )
        return [{"text": text} for text in texts]

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt takes, with the marks of the chat."""
        return super().count_tokens(as_chats(self.pipeline.tokenizer, prompts, thinking=True))

    def predict(self, x: Tensor, sigma: float, tensors: Row) -> Tensor:
        """Call the transformer; its last dim but two is frames."""
        texts = list(tensors["text"])
        if "mask" in tensors:
            texts = [text[:length] for text, length in zip(texts, tensors["mask"].sum(1).tolist(), strict=True)]
        predicted = self.transformer(
            list(x.unsqueeze(2)), times(x, 1.0 - sigma), texts, patch_size=PATCH, return_dict=False
        )[0]
        return -torch.stack(predicted).squeeze(2).float()

    def guide(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Combine both predictions, with a scale that is counted from the positive one."""
        return positive + self.options.guidance_scale * (positive - negative)

    def pack(self, latents: Tensor) -> Tensor:
        """Leave latents as they are."""
        return latents

    def unpack(self, x: Tensor) -> Tensor:
        """Leave latents as they are."""
        return x
