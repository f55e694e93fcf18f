"""Adapters over diffusers pipelines. A family is found by the class that `model_index.json` names."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixgrpo.errors import ConfigError, ModelError
from mixgrpo.models.base import Conditioning, FlowModel
from mixgrpo.shapes.files import BUNDLED, bundled_folder, is_hub_id

if TYPE_CHECKING:
    from mixgrpo.models.pipeline import PipelineModel

__all__ = ["BUNDLED", "MODELS", "Conditioning", "Family", "FlowModel", "bundled_folder", "load_model"]


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one pipeline class."""

    name: str
    """What its models are called."""
    adapter: str
    """`module:class` of its adapter, in this package."""


MODELS = {
    "FluxPipeline": Family("FLUX.1", "flux:FluxModel"),
    "StableDiffusion3Pipeline": Family("Stable Diffusion 3 and 3.5", "sd3:StableDiffusion3Model"),
}
"""Pipeline class -> family, for those that have an adapter."""


def load_model(
    path_or_hub_id: str,
    *,
    height: int,
    width: int,
    num_frames: int = 1,
    guidance_scale: float = 3.5,
    negative_prompt: str = "",
    max_sequence_length: int = 512,
    dtype: str = "float32",
    autocast: str = "off",
    attention: str = "native",
    gradient_checkpointing: bool = False,
    device: str = "auto",
    revision: str = "",
) -> FlowModel:
    """Load a bundled model by name, a diffusers folder, or a hub id, and freeze it.

    Weights are read from safetensors only, and no remote code is run.

    Raises:
        ModelError: if there is no such model, it is of an unknown family, or its files cannot be read.
        ConfigError: if the image size or another option does not fit the model.
    """
    source = str(bundled_folder(path_or_hub_id)) if path_or_hub_id in BUNDLED else path_or_hub_id
    if not is_hub_id(source):
        _check_folder(Path(source))
    import torch  # noqa: PLC0415 - the check above answers at once
    from diffusers import DiffusionPipeline  # noqa: PLC0415

    from mixgrpo.models.pipeline import ModelOptions  # noqa: PLC0415

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_device(device)
    hub: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        index: Any = DiffusionPipeline.load_config(source, **hub)
        adapter = _adapter(index.get("_class_name"), path_or_hub_id)
        _check_size(height, width, adapter.side_multiple(_part_configs(source, index, hub)))
        pipeline: Any = DiffusionPipeline.from_pretrained(
            source, dtype=getattr(torch, dtype), use_safetensors=True, **hub
        )
    except (OSError, TypeError) as error:
        raise ModelError(f"model {path_or_hub_id!r} cannot be loaded: {error}") from error
    options = ModelOptions(
        height=height,
        width=width,
        num_frames=num_frames,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        max_sequence_length=max_sequence_length,
        autocast=None if autocast == "off" else getattr(torch, autocast),
    )
    model = adapter(pipeline.to(device), options)
    if attention != "native":
        try:
            pipeline.transformer.set_attention_backend(attention)
        except (ValueError, ImportError, RuntimeError) as error:
            raise ConfigError(f"model.attention {attention!r} cannot be used here: {error}") from error
    if gradient_checkpointing:
        pipeline.transformer.enable_gradient_checkpointing()
    return model


def _adapter(pipeline: object, source: str) -> "type[PipelineModel]":
    """Return the adapter of a pipeline class.

    Raises:
        ModelError: if it has none.
    """
    module, _, name = _family(pipeline, source).adapter.partition(":")
    return getattr(importlib.import_module(f"mixgrpo.models.{module}"), name)


def _part_configs(source: str, index: dict[str, Any], hub: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the configs of VAE and transformer, which say what sides an image can have."""
    import diffusers  # noqa: PLC0415

    parts = {name: index[name][1] for name in ("vae", "transformer") if name in index}
    return {name: getattr(diffusers, kind).load_config(source, subfolder=name, **hub) for name, kind in parts.items()}


def _check_folder(folder: Path) -> None:
    """Find a wrong path or an unknown family before torch and diffusers are loaded."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"model {str(folder)!r} is neither a bundled model ({', '.join(BUNDLED)}), nor a diffusers folder "
            f"(a folder with a model_index.json), nor a hub id (owner/name)"
        )
    try:
        pipeline = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ModelError(f"{index} is not a JSON object: {error}") from error
    _family(pipeline, str(folder))


def _family(pipeline: object, source: str) -> Family:
    if not isinstance(pipeline, str) or pipeline not in MODELS:
        known = ", ".join(f"{cls} ({family.name})" for cls, family in MODELS.items())
        raise ModelError(f"model {source!r} is of the pipeline {pipeline!r}, which has no adapter; there are: {known}")
    return MODELS[pipeline]


def _check_size(height: int, width: int, multiple: int) -> None:
    for name, value in (("height", height), ("width", width)):
        if value % multiple:
            below = value - value % multiple
            raise ConfigError(
                f"model.{name} ({value}) must be a multiple of {multiple} for this model; "
                f"nearest: {below or multiple} or {below + multiple}"
            )


def _check_device(device: str) -> None:
    import torch  # noqa: PLC0415

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"model.device {device!r} is no torch device: use auto, cpu or cuda:0") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"model.device is {device!r}, but torch sees no CUDA device here; use auto or cpu")
