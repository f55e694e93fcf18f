"""Adapters over diffusers pipelines. A family is found by the class that `model_index.json` names."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from mixgrpo.errors import ConfigError, ModelError
from mixgrpo.models.base import Conditioning, FlowModel

__all__ = ["BUNDLED", "MODELS", "Conditioning", "FlowModel", "bundled_folder", "load_model"]

MODELS = {"FluxPipeline": "FLUX.1"}
"""Pipeline class -> family, for those that have an adapter."""

BUNDLED = ("flux-nano",)
"""Models that come with the package."""


def bundled_folder(name: str) -> Path:
    """Return the folder of a model that comes with the package."""
    return Path(str(resources.files("mixgrpo") / "assets" / name))


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
    _check_family(source)
    import torch  # noqa: PLC0415 - the checks above answer at once
    from diffusers import FluxPipeline  # noqa: PLC0415

    from mixgrpo.models.flux import FluxModel  # noqa: PLC0415

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        pipeline = FluxPipeline.from_pretrained(source, dtype=getattr(torch, dtype), use_safetensors=True, **options)
    except (OSError, ValueError) as error:
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


def _check_family(source: str) -> None:
    """Find a wrong path or an unknown family before torch and diffusers are loaded."""
    folder = Path(source)
    if not folder.exists() and source.count("/") == 1 and not source.startswith((".", "/")):
        return  # a hub id, which diffusers resolves
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"model {source!r} is neither a bundled model ({', '.join(BUNDLED)}), nor a diffusers folder "
            f"(a folder with a model_index.json), nor a hub id (owner/name)"
        )
    try:
        family = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ModelError(f"{index} is not a JSON object: {error}") from error
    if family not in MODELS:
        known = ", ".join(f"{cls} ({name})" for cls, name in MODELS.items())
        raise ModelError(f"{index} names the pipeline {family!r}, which has no adapter; there are: {known}")
