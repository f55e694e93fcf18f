"""Wan 2.1 and 2.2 text-to-video as diffusers have them: latents are clips, guidance is classifier-free.

Three kinds share a pipeline class: one transformer (2.1), two that share the noise levels (2.2 A14B), and one that can
be told a time for every patch (2.2 TI2V-5B). Without a first frame to start from these are all the same, so one time
is given; the pipeline repeats it for every patch, which fills memory and comes to the same.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from mixgrpo.errors import ModelError
from mixgrpo.models.base import Conditioning, times
from mixgrpo.models.clips import SIDES, ClipModel
from mixgrpo.models.options import ModelOptions
from mixgrpo.models.pipeline import Device, Parts, Row
from mixgrpo.models.registry import LORA_FILE, SECOND_LORA_FILE
from mixgrpo.models.schedule import scheduler_sigmas, unipc_sigmas
from mixgrpo.models.stages import TwoStageTransformer
from mixgrpo.models.video_vae import VideoVae
from mixgrpo.shapes.wan import LORA_TARGETS

_THOUSAND = 1000.0
"""The transformer counts time in thousandths."""


class EulerSteps(FlowMatchEulerDiscreteScheduler):
    """Steps between `levels`, whatever number is asked for."""

    levels: Sequence[float] = ()

    def set_timesteps(self, *args: Any, device: Any = None, **kwargs: Any) -> None:
        """Take the levels."""
        del args, kwargs
        super().set_timesteps(sigmas=list(self.levels), device=device)


class WanModel(ClipModel):
    """A `WanPipeline`: x is [B, channels, (F - 1) / 4 + 1, height / f, width / f], f the VAE's factor."""

    text_encoders = ("text_encoder",)
    tokenizer = "tokenizer"
    lora_targets = LORA_TARGETS
    no_comfyui = (
        "ComfyUI reads adapters of Wan only under the original checkpoint's names (blocks.0.self_attn.q), not under "
        "diffusers' (blocks.0.attn1.to_q)"
    )
    float32_parts = ("vae",)  # as Wan's own pages load it
    compares_in_euler_steps = True

    def __init__(self, pipeline: WanPipeline, options: ModelOptions) -> None:
        """Take a loaded pipeline and freeze it.

        Raises:
            ModelError: if the pipeline lacks a transformer that its noise levels need.
        """
        super().__init__(pipeline, options)
        self._network = _network(self.pipeline)
        self.has_two_stages = isinstance(self._network, TwoStageTransformer)
        vae: Any = pipeline.vae
        self.vae = VideoVae.with_statistics(vae, factor=vae.config.scale_factor_spatial)
        self.latent_shape = self.shape_of_latents(
            channels=self.pipeline.transformer.config.in_channels,
            factor=vae.config.scale_factor_spatial,
            frames=vae.config.scale_factor_temporal,
        )

    @classmethod
    def side_multiple(cls, parts: Parts) -> int:
        """Return the VAE's factor times the transformer's patch, and at least 16."""
        return math.lcm(SIDES, parts["vae"].get("scale_factor_spatial", 8) * parts["transformer"]["patch_size"][1])

    @classmethod
    def frame_multiple(cls, parts: Parts) -> int:
        """Return how many frames after the first become one."""
        return parts["vae"].get("scale_factor_temporal", 4)

    @property
    def transformer(self) -> nn.Module:
        """The network that predicts the velocity; of two transformers, both."""
        return self._network

    @transformer.setter
    def transformer(self, transformer: nn.Module) -> None:
        self._network = transformer
        if isinstance(transformer, TwoStageTransformer):
            self.pipeline.transformer, self.pipeline.transformer_2 = transformer.transformer, transformer.transformer_2
        else:
            self.pipeline.transformer = transformer

    @classmethod
    def guides(cls, guidance_scale: float, index: Mapping[str, Any]) -> bool:
        """Return whether the scale asks for a second call."""
        del index
        return guidance_scale > 1.0

    def sigmas(self, num_steps: int) -> tuple[float, ...]:
        """Return the pipeline's schedule, whose times come from the scheduler: UniPC's as shipped, or Euler's."""
        config = self.pipeline.scheduler.config
        if "flow_shift" in config:
            return unipc_sigmas(config, num_steps)
        return scheduler_sigmas(config, num_steps, tokens=math.prod(self.latent_shape[1:]))

    @staticmethod
    def encode_rows(pipeline: Any, prompts: Sequence[str], *, max_sequence_length: int, device: Device) -> list[Row]:
        """Encode with UMT5; what follows a prompt's end is zeros, up to `max_sequence_length`."""
        text, _ = pipeline.encode_prompt(
            prompt=list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
            device=device,
        )
        return [{"text": one} for one in text]

    def predict(self, x: Tensor, sigma: float, tensors: Row) -> Tensor:
        """Call the transformer, of two the one that `sigma` belongs to."""
        stage = {"sigma": sigma} if self.has_two_stages else {}
        return self._network(
            **stage,
            hidden_states=x,
            timestep=times(x, sigma * _THOUSAND),
            encoder_hidden_states=tensors["text"],
            return_dict=False,
        )[0]

    def velocity(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """Predict the velocity; the second of two transformers can have a guidance scale of its own."""
        scale, network = self.options.guidance_scale_2, self._network
        if not (scale and self.is_guided and isinstance(network, TwoStageTransformer) and network.is_second(sigma)):
            return super().velocity(x, sigma, conditioning)
        positive, negative = self._predict(x, sigma, conditioning), self._predict_negative(x, sigma, conditioning)
        return negative + scale * (positive - negative)

    def call_arguments(self) -> dict[str, Any]:
        """Return the pipeline's own call, with the second scale where there is one."""
        second = {"guidance_scale_2": scale} if (scale := self.options.guidance_scale_2) else {}
        return {**super().call_arguments(), **second}

    def pipeline_picture(self, prompt: str, x: Tensor, *, num_steps: int) -> Tensor:
        """Return what the pipeline's loop draws in Euler steps, which ours takes, between the same noise levels."""
        shipped, euler = self.pipeline.scheduler, EulerSteps(shift=1.0)
        euler.levels = self.sigmas(num_steps)[:-1]
        self.pipeline.scheduler = euler
        try:
            return super().pipeline_picture(prompt, x, num_steps=num_steps)
        finally:
            self.pipeline.scheduler = shipped

    def save_lora(self, folder: Path) -> None:
        """Write the adapter; of two transformers, the second's in a folder of its own.

        The pipeline takes that one by `load_lora_weights(folder, weight_name=SECOND_LORA_FILE,
        load_into_transformer_2=True)`.
        """
        if not self.has_two_stages:
            super().save_lora(folder)
            return
        network: Any = self._network
        weights: Any = get_peft_model_state_dict(network)
        for part, file in (("transformer.", folder / LORA_FILE), ("transformer_2.", folder / SECOND_LORA_FILE)):
            self.pipeline.save_lora_weights(
                file.parent,
                transformer_lora_layers={
                    name.removeprefix(part): tensor for name, tensor in weights.items() if name.startswith(part)
                },
                transformer_lora_adapter_metadata=network.peft_config["default"].to_dict(),
                safe_serialization=True,
            )

    def _load_lora(self, folder: Path) -> None:
        super()._load_lora(folder)
        if self.has_two_stages:
            self.pipeline.load_lora_weights(folder, weight_name=SECOND_LORA_FILE, load_into_transformer_2=True)


def _network(pipeline: Any) -> nn.Module:
    """Return what predicts at all noise levels."""
    boundary = pipeline.config.boundary_ratio
    if pipeline.transformer is None or (boundary is not None and pipeline.transformer_2 is None):
        raise ModelError("this Wan pipeline lacks a transformer that its noise levels need; load a complete one")
    if boundary is None:
        return pipeline.transformer
    return TwoStageTransformer(pipeline.transformer, pipeline.transformer_2, boundary=boundary)
