"""Qwen-Image as diffusers has it: latents are packed 2 x 2 into tokens, guidance is classifier-free and keeps norms."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import QwenImagePipeline
from torch import Tensor

from mixgrpo.errors import ConfigError, ModelError
from mixgrpo.models.base import times
from mixgrpo.models.comfyui import QWEN_LAYERS
from mixgrpo.models.options import ModelOptions
from mixgrpo.models.pipeline import Device, Parts, PipelineModel, Row
from mixgrpo.models.video_vae import VideoVae
from mixgrpo.shapes.qwen import LORA_TARGETS

_LONGEST = 1024
"""Tokens of a prompt that the pipeline takes at most."""


class QwenImageModel(PipelineModel):
    """A `QwenImagePipeline`: x is [B, height / 2f * width / 2f, 4 * channels], f the VAE's factor.

    The guidance scale is what the pipeline calls `true_cfg_scale`, with the negative prompt also where it is empty. The
    pipeline's own `guidance_scale` is for models with guidance distilled into them, which its transformer cannot run.
    """

    text_encoders = ("text_encoder",)
    tokenizer = "tokenizer"
    lora_targets = LORA_TARGETS
    comfyui_layers = QWEN_LAYERS

    def __init__(self, pipeline: QwenImagePipeline, options: ModelOptions) -> None:
        """Take a loaded pipeline and freeze it.

        Raises:
            ConfigError: if the longest prompt is longer than the pipeline takes.
            ModelError: if guidance is distilled into the model.
        """
        super().__init__(pipeline, options)
        if options.max_sequence_length > _LONGEST:
            raise ConfigError(
                f"model.max_sequence_length ({options.max_sequence_length}) can be at most {_LONGEST} for Qwen-Image"
            )
        if pipeline.transformer.config.guidance_embeds:
            raise ModelError(
                "a Qwen-Image with guidance embeddings cannot be run: diffusers' transformer has no such part"
            )
        self.vae = VideoVae.with_statistics(pipeline.vae, factor=pipeline.vae.spatial_compression_ratio)
        high, wide = (side // (2 * self.vae.factor) for side in (options.height, options.width))
        self.latent_shape = (high * wide, pipeline.transformer.config.in_channels)
        self._picture = [(1, high, wide)]

    @classmethod
    def side_multiple(cls, parts: Parts) -> int:
        """Return the VAE's factor times the packing's 2."""
        return 2 ** len(parts["vae"]["temperal_downsample"]) * 2

    @classmethod
    def guides(cls, guidance_scale: float, index: Mapping[str, Any]) -> bool:
        """Return whether the scale asks for a second call."""
        del index
        return guidance_scale > 1.0

    @staticmethod
    def encode_rows(pipeline: Any, prompts: Sequence[str], *, max_sequence_length: int, device: Device) -> list[Row]:
        """Encode with the language model, in the pipeline's chat format, whose head and padding are cut off."""
        texts, masks = pipeline.encode_prompt(
            prompt=list(prompts), device=device, max_sequence_length=max_sequence_length
        )
        if masks is None:
            return [{"text": text} for text in texts]
        return [{"text": text[mask.bool()]} for text, mask in zip(texts, masks, strict=True)]

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt takes, with the marks of the chat after it."""
        chats = [self.pipeline.prompt_template_encode.format(prompt) for prompt in prompts]
        return [count - self.pipeline.prompt_template_encode_start_idx for count in super().count_tokens(chats)]

    def predict(self, x: Tensor, sigma: float, tensors: Row) -> Tensor:
        """Call the transformer."""
        return self.transformer(
            hidden_states=x,
            timestep=times(x, sigma),
            encoder_hidden_states=tensors["text"],
            encoder_hidden_states_mask=tensors.get("mask"),
            img_shapes=[self._picture] * len(x),
            return_dict=False,
        )[0]

    def call_arguments(self) -> dict[str, Any]:
        """Return the pipeline's own call, with the scale as `true_cfg_scale`."""
        arguments = super().call_arguments()
        return {"true_cfg_scale" if name == "guidance_scale" else name: value for name, value in arguments.items()}

    def guide(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Combine both predictions and give every token the norm that it has with the prompt alone."""
        combined = super().guide(positive, negative)
        return combined * (positive.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))

    def pack(self, latents: Tensor) -> Tensor:
        """Pack [B, channels, 1, h, w]."""
        latents = latents.squeeze(2)
        return QwenImagePipeline._pack_latents(latents, *latents.shape)

    def unpack(self, x: Tensor) -> Tensor:
        """Unpack to [B, channels, 1, h, w]."""
        high, wide = self.options.height, self.options.width
        return QwenImagePipeline._unpack_latents(x, high, wide, self.vae.factor)
