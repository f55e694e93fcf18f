"""What all families share: a frozen diffusers pipeline whose transformer is trained, guidance, and saving."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from mixgrpo.errors import ModelError
from mixgrpo.models.base import Conditioning
from mixgrpo.models.comfyui import comfyui_tensors, unknown_layers
from mixgrpo.models.options import ModelOptions, refuse_negatives
from mixgrpo.models.prompt_cache import PromptCache
from mixgrpo.models.registry import LORA_FILE, MODELS
from mixgrpo.models.schedule import pipeline_sigmas
from mixgrpo.models.vae import Vae
from mixgrpo.visits import visiting

Device = torch.device | str

Row = dict[str, Tensor]
"""One encoded prompt: tensors without a batch dim, by the names that the family gave them."""

Parts = Mapping[str, Mapping[str, Any]]
"""The config of every part of a pipeline that has one, such as `transformer`."""


class PipelineModel:
    """A diffusers pipeline as a `FlowModel`. A family is a subclass of at most 200 lines, without a loop."""

    text_encoders: tuple[str, ...]
    """Parts of the pipeline that only encode prompts."""
    tokenizer: str
    """The part that splits prompts for the main text encoder."""
    lora_targets: tuple[str, ...]
    """Names of the layers that get an adapter unless told otherwise."""
    float32_parts: tuple[str, ...] = ()
    """Parts of the pipeline that are loaded in float32 whatever the others are."""
    comfyui_layers: str = ""
    """Pattern of the layers that ComfyUI reads an adapter for under diffusers' names; empty: none, see `no_comfyui`."""
    no_comfyui: str = "it is not known what ComfyUI calls the layers of this family"
    """Why there is no such layer."""

    latent_shape: tuple[int, ...]
    """Shape of one sample's latent, as `velocity` takes it."""
    vae: Vae
    """The autoencoder, with its scaling undone."""
    has_two_stages: bool = False
    """Whether two transformers share the noise levels."""
    compares_in_euler_steps: bool = False
    """Whether `pipeline_picture` takes Euler steps whatever the pipeline's own solver is."""

    source: Path | None = None
    """Folder that the pipeline came from."""
    prompt_cache: PromptCache | None = None
    """Where encoded prompts are, if the text encoders are not loaded."""

    def __init__(self, pipeline: DiffusionPipeline, options: ModelOptions) -> None:
        """Take a loaded pipeline and freeze it.

        Raises:
            ConfigError: if an option does not fit the family.
        """
        self.pipeline: Any = pipeline
        self.options = options
        self._negative: Conditioning | None = None
        self._offloaded = False
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self.check_negatives(())

    @classmethod
    def side_multiple(cls, parts: Parts) -> int:
        """Return what the sides of an image must be multiples of."""
        raise NotImplementedError

    @classmethod
    def frame_multiple(cls, parts: Parts) -> int:
        """Return how many frames after the first become one in a clip's latent; 0: the family draws images only."""
        del parts
        return 0

    @classmethod
    def guides(cls, guidance_scale: float, index: Mapping[str, Any]) -> bool:
        """Return whether a prediction takes two model calls, with the prompt and with a negative prompt.

        Args:
            guidance_scale: as in `ModelOptions`.
            index: what `model_index.json` says, the pipeline's settings among it.
        """
        del guidance_scale, index
        return False

    @staticmethod
    def encode_rows(pipeline: Any, prompts: Sequence[str], *, max_sequence_length: int, device: Device) -> list[Row]:
        """Encode prompts, each as it would be alone. Of `pipeline` only the text encoders need be loaded."""
        raise NotImplementedError

    def predict(self, x: Tensor, sigma: float, tensors: Row) -> Tensor:
        """Call the transformer once: v at x [B, *latent_shape], without classifier-free guidance.

        x and the floating-point tensors come in the type that the transformer computes in.
        """
        raise NotImplementedError

    def pack(self, latents: Tensor) -> Tensor:
        """Turn latents as the VAE has them, scaled, into what `velocity` takes."""
        raise NotImplementedError

    def unpack(self, x: Tensor) -> Tensor:
        """Undo `pack`."""
        raise NotImplementedError

    @property
    def pipeline_class(self) -> str:
        """Name of the class in diffusers that loads what is saved."""
        return type(self.pipeline).__name__

    @property
    def transformer(self) -> nn.Module:
        """The network that predicts the velocity."""
        return self.pipeline.transformer

    @transformer.setter
    def transformer(self, transformer: nn.Module) -> None:
        self.pipeline.transformer = transformer

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.transformer.parameters()).device

    @property
    def is_guided(self) -> bool:
        """Whether a prediction takes two model calls, with the prompt and with the negative prompt."""
        return self.guides(self.options.guidance_scale, self.pipeline.config)

    def sigmas(self, num_steps: int) -> tuple[float, ...]:
        """Return the schedule of the family's own pipeline, num_steps + 1 values from 1 down to 0."""
        return pipeline_sigmas(self.pipeline.scheduler.config, num_steps, tokens=self.image_tokens)

    @property
    def image_tokens(self) -> int:
        """Tokens of an image, on which some schedules depend."""
        return self.latent_shape[0]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], negatives: Sequence[str] = ()) -> Conditioning:
        """Encode prompts, and once the model's negative prompt where guidance needs it.

        Args:
            prompts: texts.
            negatives: what guidance leads each prompt away from; where it is empty, the model's negative prompt.

        Raises:
            ConfigError: if there is a negative prompt, but no guidance that reads it.
            ModelError: if text encoders are not loaded and a prompt is not in the cache.
        """
        self.check_negatives(negatives)
        if self.is_guided and self._negative is None:
            self._negative = self.collate(self._rows([self.options.negative_prompt]))
        conditioning = self.collate(self._rows(prompts))
        if not any(negatives):
            return conditioning
        led_from = [negative or self.options.negative_prompt for negative in negatives]
        return Conditioning(conditioning.tensors, self.collate(self._rows(led_from)))

    def check_negatives(self, negatives: Sequence[str]) -> None:
        """Refuse negative prompts, the model's too, where nothing would read them.

        Raises:
            ConfigError: if there is one.
        """
        if not self.is_guided:
            family, options = MODELS[self.pipeline_class].name, self.options
            negative = options.negative_prompt
            refuse_negatives(family, options.guidance_scale, negative_prompt=negative, negatives=negatives)

    def _rows(self, prompts: Sequence[str]) -> list[Row]:
        if self.prompt_cache is not None:
            rows = [self.prompt_cache.read(prompt) for prompt in prompts]
            return [{name: tensor.to(self.device) for name, tensor in row.items()} for row in rows]
        length = self.options.max_sequence_length
        with self._at_work(*self.text_encoders):
            return self.encode_rows(self.pipeline, prompts, max_sequence_length=length, device=self.device)

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt takes, its end included; encoding cuts at `max_sequence_length`."""
        tokenizer = getattr(self.pipeline, self.tokenizer)
        return [len(tokens) for tokens in tokenizer(list(prompts), verbose=False).input_ids]

    def collate(self, rows: Sequence[Row]) -> Conditioning:
        """Put prompts together: texts shorter than the longest are padded, and then a `mask` says what is text."""
        tensors = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "text"}
        texts = [row["text"] for row in rows]
        longest = max(len(text) for text in texts)
        tensors["text"] = torch.stack([pad(text, (0, 0, 0, longest - len(text))) for text in texts])
        if any(len(text) < longest for text in texts):
            lengths = torch.tensor([len(text) for text in texts], device=texts[0].device)
            tensors["mask"] = torch.arange(longest, device=lengths.device) < lengths[:, None]
        return Conditioning(tensors)

    def velocity(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """Predict the velocity; sigma goes in unrounded, as in the pipelines (in bfloat16, diffusers casts it)."""
        positive = self._predict(x, sigma, conditioning)
        return self.guide(positive, self._predict_negative(x, sigma, conditioning)) if self.is_guided else positive

    def _predict_negative(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        if conditioning.negative is not None:
            return self._predict(x, sigma, conditioning.negative)
        if self._negative is None:
            raise AssertionError("encode prompts before: that encodes the negative prompt too")
        return self._predict(x, sigma, self._negative.take(torch.zeros(len(x), dtype=torch.long, device=x.device)))

    def _predict(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        autocast = self.options.autocast
        dtype = autocast or cast(Any, self.transformer).dtype
        tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in conditioning.tensors.items()}
        with torch.autocast(x.device.type, dtype=autocast, enabled=autocast is not None):
            return self.predict(x.to(dtype), sigma, tensors)

    def guide(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Combine both predictions: classifier-free guidance (arXiv 2207.12598)."""
        return negative + self.options.guidance_scale * (positive - negative)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Unpack and decode."""
        with self._at_work("vae"):
            return (self.vae.decode(self.unpack(x)) / 2.0 + 0.5).clamp(0.0, 1.0).cpu()

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Encode to the mode of the VAE's posterior and pack: what `decode` undoes."""
        height, width = self.options.height, self.options.width
        if images.shape[1:] != (3, height, width):
            raise ValueError(f"images must be [batch, 3, {height}, {width}], got {tuple(images.shape)}")
        with self._at_work("vae"):
            return self.pack(self.vae.encode((images * 2.0 - 1.0).to(self.device)))

    def encode_mask(self, masks: Tensor) -> Tensor:
        """Mark every cell of the VAE's grid that has a marked pixel, in all channels."""
        cells = self.vae.cells(masks.to(self.device, torch.float32))
        return self.pack(cells) > 0.0

    def call_arguments(self) -> dict[str, Any]:
        """Return the pipeline's own call that draws as this model is set, as plain values that can be written down.

        A text under a name that ends in `_embeds` is meant as the pipeline's `encode_prompt` encodes it.
        """
        options = self.options
        negative = {"negative_prompt": options.negative_prompt} if self.is_guided else {}
        return {
            "height": options.height,
            "width": options.width,
            "guidance_scale": options.guidance_scale,
            **negative,
            "max_sequence_length": options.max_sequence_length,
        }

    def pipeline_arguments(self, x: Tensor) -> dict[str, Any]:
        """Return that call with all values as the pipeline takes them, and with the noise x."""
        return {**self.call_arguments(), "latents": x}

    @torch.no_grad()
    def pipeline_picture(self, prompt: str, x: Tensor, *, num_steps: int) -> Tensor:
        """Return what diffusers' own loop draws from the noise x [1, *latent_shape]: a picture [3, H, W] in [0, 1]."""
        self.pipeline.set_progress_bar_config(disable=True)
        with self._at_work("vae", *self.text_encoders):
            drawn = self.pipeline(
                prompt=prompt,
                num_inference_steps=num_steps,
                output_type="pt",
                return_dict=False,
                **self.pipeline_arguments(x.to(self.device)),
            )
        return drawn[0][0].float().cpu()

    def offload(self) -> None:
        """Let what is idle wait on the CPU from now on: VAE and text encoders."""
        self._offloaded = True
        for part in self._loaded("vae", *self.text_encoders):
            part.to("cpu")

    def _at_work(self, *names: str) -> AbstractContextManager[None]:
        """Have parts of the pipeline beside the transformer meanwhile, if they rest elsewhere."""
        return visiting(self._loaded(*names) if self._offloaded else [], self.device)

    def _loaded(self, *names: str) -> list[nn.Module]:
        parts = (getattr(self.pipeline, name) for name in names)
        return [part for part in parts if part is not None]

    def save(self, folder: Path) -> None:
        """Write the pipeline as safetensors; its class's `from_pretrained(folder)` loads it.

        Text encoders that are not loaded are copied from where the model came from.
        """
        self.pipeline.save_pretrained(folder, safe_serialization=True)
        absent = [name for name in self.text_encoders if getattr(self.pipeline, name) is None]
        if absent and self.source is not None:
            for name in absent:
                shutil.copytree(self.source / name, folder / name)
            shutil.copyfile(self.source / "model_index.json", folder / "model_index.json")

    def save_lora(self, folder: Path) -> None:
        """Write the adapter alone, with its scale; the pipeline's `load_lora_weights(folder)` loads it."""
        transformer = cast(Any, self.transformer)
        self.pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=cast(Any, get_peft_model_state_dict(transformer)),
            transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
            safe_serialization=True,
        )

    def save_comfyui_lora(self, file: Path) -> str:
        """Write the adapter alone as the file that ComfyUI reads, if ComfyUI has a name for each of its layers.

        Returns:
            Why it was not written; empty if it was.
        """
        if not self.comfyui_layers:
            return self.no_comfyui
        transformer = cast(Any, self.transformer)
        weights = cast("dict[str, Tensor]", get_peft_model_state_dict(transformer))
        if unknown := unknown_layers(weights, self.comfyui_layers):
            return f"ComfyUI has no name for {len(unknown)} of the trained layers, such as {unknown[0]}"
        save_file(comfyui_tensors(weights, alpha=transformer.peft_config["default"].lora_alpha), file)
        return ""

    def load_lora(self, folder: Path) -> None:
        """Put the adapter that `save_lora` wrote on top of the model.

        Raises:
            ModelError: if it cannot be read, or is of another model.
        """
        try:
            self._load_lora(folder)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"the adapter in {folder} cannot be loaded: {error}") from error
        self.transformer.requires_grad_(False)

    def _load_lora(self, folder: Path) -> None:
        self.pipeline.load_lora_weights(folder, weight_name=LORA_FILE)
