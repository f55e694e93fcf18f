"""The families that have an adapter, and where a model's folder is. Torch and diffusers are imported late."""

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError

from mixgrpo.errors import ModelError
from mixgrpo.shapes.files import BUNDLED, bundled_folder, is_hub_id

if TYPE_CHECKING:
    from mixgrpo.models.pipeline import PipelineModel


_INDEX = "model_index.json"
"""Names the class of a pipeline and of its parts, and holds the pipeline's settings."""

LORA_FILE = "pytorch_lora_weights.safetensors"
"""Where diffusers looks for an adapter in a folder."""

SECOND_LORA_FILE = f"transformer_2/{LORA_FILE}"
"""Beside it, that of the second of two transformers."""


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one pipeline class."""

    name: str
    """What its models are called."""
    adapter: str
    """`module:class` of its adapter, in this package."""


MODELS = {
    "FluxPipeline": Family("FLUX.1", "flux:FluxModel"),
    "Flux2Pipeline": Family("FLUX.2", "flux2:Flux2Model"),
    "Flux2KleinPipeline": Family("FLUX.2 klein", "flux2:Flux2KleinModel"),
    "QwenImagePipeline": Family("Qwen-Image", "qwen:QwenImageModel"),
    "StableDiffusion3Pipeline": Family("Stable Diffusion 3 and 3.5", "sd3:StableDiffusion3Model"),
    "ZImagePipeline": Family("Z-Image", "z_image:ZImageModel"),
    "WanPipeline": Family("Wan 2.1 and 2.2", "wan:WanModel"),
    "HunyuanVideoPipeline": Family("HunyuanVideo", "hunyuan_video:HunyuanVideoModel"),
}
"""Pipeline class -> family, for those that have an adapter."""


def find_model(path_or_hub_id: str, revision: str) -> "tuple[Path, type[PipelineModel]]":
    """Return the folder of a model, downloaded if it is on the hub, and its adapter.

    Raises:
        ModelError: if there is no such model, it cannot be downloaded, or it is of an unknown family.
    """
    index = find_index(path_or_hub_id, revision)  # first, as a family without adapter need not be downloaded
    adapter = find_adapter(index, path_or_hub_id)
    if not _is_on_hub(path_or_hub_id):
        return find_folder(path_or_hub_id), adapter
    from diffusers import DiffusionPipeline  # noqa: PLC0415 - a wrong folder is found without it

    with _downloading(path_or_hub_id):
        downloaded: Any = DiffusionPipeline.download(path_or_hub_id, use_safetensors=True, **_at(revision))
    return Path(downloaded), adapter


def find_index(path_or_hub_id: str, revision: str) -> dict[str, Any]:
    """Return what the `model_index.json` of a model says; of one on the hub only that is downloaded.

    Raises:
        ModelError: as `find_model`.
    """
    if not _is_on_hub(path_or_hub_id):
        return read_index(find_folder(path_or_hub_id))
    with _downloading(path_or_hub_id):
        return read_index(Path(hf_hub_download(path_or_hub_id, _INDEX, **_at(revision))).parent)


def _is_on_hub(path_or_hub_id: str) -> bool:
    return is_hub_id(path_or_hub_id) and path_or_hub_id not in BUNDLED


def _at(revision: str) -> dict[str, Any]:
    return {"revision": revision} if revision else {}


@contextmanager
def _downloading(hub_id: str) -> Iterator[None]:
    """Turn what can go wrong meanwhile into a ModelError, whose text is one line."""
    try:
        yield
    except GatedRepoError as error:
        raise ModelError(
            f"model {hub_id!r} cannot be downloaded: it is gated; accept its terms on https://huggingface.co/{hub_id}, "
            "and log in here with hf auth login"
        ) from error
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ModelError(f"model {hub_id!r} cannot be downloaded: {said}") from error


def find_adapter(index: Mapping[str, Any], source: str) -> "type[PipelineModel]":
    """Return the adapter of the pipeline class that `model_index.json` names; `source` is what the user called it.

    Raises:
        ModelError: if it has none.
    """
    module, _, name = _family(index.get("_class_name"), source).adapter.partition(":")
    return getattr(importlib.import_module(f"mixgrpo.models.{module}"), name)


def read_index(folder: Path) -> dict[str, Any]:
    """Return what `model_index.json` says."""
    return json.loads((folder / _INDEX).read_text(encoding="utf-8"))


def find_folder(path: str) -> Path:
    """Return the folder of a bundled model, or of one on this machine; a wrong path is found before torch is loaded.

    Raises:
        ModelError: if it holds no model of a known family.
    """
    folder = bundled_folder(path) if path in BUNDLED else Path(path)
    file = folder / _INDEX
    if (folder / LORA_FILE).is_file() and not file.is_file():
        raise ModelError(
            f"model {str(folder)!r} is an adapter alone, which sample, evaluate and edit take; where a whole model is "
            f"needed, merge it first: mixgrpo export RUN --merge"
        )
    if not file.is_file():
        raise ModelError(
            f"model {str(folder)!r} is neither a bundled model ({', '.join(BUNDLED)}), nor a diffusers folder "
            f"(a folder with a model_index.json), nor a hub id (owner/name)"
        )
    try:
        _family(read_index(folder).get("_class_name"), str(folder))
    except (json.JSONDecodeError, AttributeError) as error:
        raise ModelError(f"{file} is not a JSON object: {error}") from error
    return folder


def _family(pipeline: object, source: str) -> Family:
    if not isinstance(pipeline, str) or pipeline not in MODELS:
        known = ", ".join(f"{cls} ({family.name})" for cls, family in MODELS.items())
        raise ModelError(f"model {source!r} is of the pipeline {pipeline!r}, which has no adapter; there are: {known}")
    return MODELS[pipeline]
