"""Adapters over diffusers pipelines. A family is found by the class that `model_index.json` names."""

import json
from pathlib import Path
from typing import Any

from mixgrpo.errors import ConfigError, ModelError
from mixgrpo.models.base import Conditioning, FlowModel
from mixgrpo.shapes.files import BUNDLED, bundled_folder, is_hub_id

__all__ = ["BUNDLED", "MODELS", "Conditioning", "FlowModel", "bundled_folder", "load_model"]

MODELS = {"FluxPipeline": "FLUX.1"}
"""Pipeline class -> family, for those that have an adapter."""


def load_model(
    path_or_hub_id: str,
    *,
    height: int,
    width: int,
    guidance_scale: float = 3.5,
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
        ConfigError: if the image size does not fit the model.
    """
    source = str(bundled_folder(path_or_hub_id)) if path_or_hub_id in BUNDLED else path_or_hub_id
    if not is_hub_id(source):
        _check_folder(Path(source))
    import torch  # noqa: PLC0415 - the check above answers at once
    from diffusers import AutoencoderKL, FluxPipeline  # noqa: PLC0415

    from mixgrpo.models.flux import FluxModel, side_multiple  # noqa: PLC0415

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_device(device)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        index: Any = FluxPipeline.load_config(source, **options)
        _check_family(index.get("_class_name"), source)
        vae_config: Any = AutoencoderKL.load_config(source, subfolder="vae", **options)
        _check_size(height, width, side_multiple(vae_config))
        pipeline = FluxPipeline.from_pretrained(source, dtype=getattr(torch, dtype), use_safetensors=True, **options)
    except (OSError, TypeError) as error:
        raise ModelError(f"model {path_or_hub_id!r} cannot be loaded: {error}") from error
    model = FluxModel(
        pipeline.to(device),
        height=height,
        width=width,
        guidance_scale=guidance_scale,
        max_sequence_length=max_sequence_length,
        autocast=None if autocast == "off" else getattr(torch, autocast),
    )
    if attention != "native":
        try:
            pipeline.transformer.set_attention_backend(attention)
        except (ValueError, ImportError, RuntimeError) as error:
            raise ConfigError(f"model.attention {attention!r} cannot be used here: {error}") from error
    if gradient_checkpointing:
        pipeline.transformer.enable_gradient_checkpointing()
    return model


def _check_folder(folder: Path) -> None:
    """Find a wrong path or an unknown family before torch and diffusers are loaded."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"model {str(folder)!r} is neither a bundled model ({', '.join(BUNDLED)}), nor a diffusers folder "
            f"(a folder with a model_index.json), nor a hub id (owner/name)"
        )
    try:
        family = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ModelError(f"{index} is not a JSON object: {error}") from error
    _check_family(family, str(folder))


def _check_family(family: object, source: str) -> None:
    if family not in MODELS:
        known = ", ".join(f"{cls} ({name})" for cls, name in MODELS.items())
        raise ModelError(f"model {source!r} is of the pipeline {family!r}, which has no adapter; there are: {known}")


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
