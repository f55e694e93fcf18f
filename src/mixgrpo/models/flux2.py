"""FLUX.2 as diffusers has it: dev, whose guidance is an embedding, and klein, whose guidance is classifier-free.

Latents are packed 2 x 2 into tokens. Texts are three layers of a language model side by side, padded to
`max_sequence_length`; the padding is attended to, as in the pipelines.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from torch import Tensor
from torch.nn.functional import pad

from mixgrpo.models.base import times
from mixgrpo.models.chat import as_chats
from mixgrpo.models.comfyui import FLUX2_LAYERS
from mixgrpo.models.options import ModelOptions
from mixgrpo.models.pipeline import Device, Parts, PipelineModel, Row
from mixgrpo.models.schedule import empirical_mu, even_times, shifted
from mixgrpo.models.vae import BatchNormVae
from mixgrpo.shapes.flux2 import lora_targets


class _Flux2Model(PipelineModel):
    """x is [B, height / 2f * width / 2f, 4 * channels], f the VAE's factor."""

    text_encoders = ("text_encoder",)
    tokenizer = "tokenizer"
    comfyui_layers = FLUX2_LAYERS

    def __init__(self, pipeline: Flux2Pipeline | Flux2KleinPipeline, options: ModelOptions) -> None:
        """Take a loaded pipeline and freeze it."""
        super().__init__(pipeline, options)
        config = pipeline.transformer.config
        self.vae = BatchNormVae(pipeline.vae)
        self._grid = tuple(side // (2 * self.vae.factor) for side in (options.height, options.width))
        self.latent_shape = (self._grid[0] * self._grid[1], config.in_channels)
        self.lora_targets = lora_targets(config)
        self._image_ids = Flux2Pipeline._prepare_latent_ids(torch.empty(1, 1, *self._grid))[0].to(self.device)

    @classmethod
    def side_multiple(cls, parts: Parts) -> int:
        """Return the VAE's factor times the packing's 2."""
        return 2 ** (len(parts["vae"]["block_out_channels"]) - 1) * 2

    def sigmas(self, num_steps: int) -> tuple[float, ...]:
        """Return the pipeline's schedule, whose shift depends on the number of steps, too."""
        mu = empirical_mu(num_steps, tokens=self.image_tokens)
        return shifted(self.pipeline.scheduler.config, even_times(num_steps), mu=mu)

    def pipeline_arguments(self, x: Tensor) -> dict[str, Any]:
        """Return the noise in the places of its tokens."""
        return {**super().pipeline_arguments(x), "latents": x.transpose(1, 2).unflatten(2, self._grid)}

    @staticmethod
    def encode_rows(pipeline: Any, prompts: Sequence[str], *, max_sequence_length: int, device: Device) -> list[Row]:
        """Encode with the language model, in the pipeline's chat format, padded to `max_sequence_length`."""
        text, _ = pipeline.encode_prompt(prompt=list(prompts), device=device, max_sequence_length=max_sequence_length)
        return [{"text": one} for one in text]

    def predict(self, x: Tensor, sigma: float, tensors: Row) -> Tensor:
        """Call the transformer. Positions are (time, row, column, word), of which texts have only the last."""
        text = tensors["text"]
        guided = cast(Any, self.transformer).config.guidance_embeds
        return self.transformer(
            hidden_states=x,
            timestep=times(x, sigma),
            guidance=times(x, self.options.guidance_scale) if guided else None,
            encoder_hidden_states=text,
            txt_ids=pad(torch.arange(text.shape[1], device=x.device)[:, None], (3, 0)),
            img_ids=self._image_ids,
            return_dict=False,
        )[0]

    def pack(self, latents: Tensor) -> Tensor:
        """Pack [B, channels, h, w]."""
        return Flux2Pipeline._pack_latents(Flux2Pipeline._patchify_latents(latents))

    def unpack(self, x: Tensor) -> Tensor:
        """Unpack to [B, channels, h, w]."""
        return Flux2Pipeline._unpatchify_latents(x.transpose(1, 2).unflatten(-1, self._grid))


class Flux2Model(_Flux2Model):
    """A `Flux2Pipeline`: the guidance scale is an embedding, there is no negative prompt."""

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt takes, with the system's part of the chat."""
        # one at a time, since a processor of pictures and text pads several
        chats = [format_input([prompt], self.pipeline.system_message) for prompt in prompts]
        read = [self.pipeline.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True) for chat in chats]
        return [len(tokens["input_ids"][0]) for tokens in read]


class Flux2KleinModel(_Flux2Model):
    """A `Flux2KleinPipeline`: guidance is classifier-free, and the distilled models have none, whatever the scale."""

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt takes, with the marks of the chat."""
        return super().count_tokens(as_chats(self.pipeline.tokenizer, prompts, thinking=False))

    def call_arguments(self) -> dict[str, Any]:
        """Return a negative prompt as one to be encoded, which is all that the pipeline takes."""
        arguments = super().call_arguments()
        if negative := arguments.pop("negative_prompt", ""):
            arguments["negative_prompt_embeds"] = negative
        return arguments

    def pipeline_arguments(self, x: Tensor) -> dict[str, Any]:
        """Return a negative prompt as it is encoded."""
        arguments = super().pipeline_arguments(x)
        if negative := arguments.get("negative_prompt_embeds"):
            length = self.options.max_sequence_length
            (row,) = self.encode_rows(self.pipeline, [negative], max_sequence_length=length, device=self.device)
            arguments["negative_prompt_embeds"] = row["text"][None]
        return arguments

    @classmethod
    def guides(cls, guidance_scale: float, index: Mapping[str, Any]) -> bool:
        """Return whether the scale asks for a second call and the model is not distilled."""
        return guidance_scale > 1.0 and not index.get("is_distilled", False)
