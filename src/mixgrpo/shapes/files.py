"""Where the config files of a model are: in the package, in a folder, or, for a known hub id, as published numbers."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mixgrpo.errors import ModelError

BUNDLED = ("flux-nano",)
"""Models that come with the package."""

PUBLISHED = {
    "black-forest-labs/FLUX.1-dev": "flux1-dev.json",
    "black-forest-labs/FLUX.1-Krea-dev": "flux1-dev.json",
    "black-forest-labs/FLUX.1-schnell": "flux1-schnell.json",
    "black-forest-labs/FLUX.2-dev": "flux2-dev.json",
    "black-forest-labs/FLUX.2-klein-4B": "flux2-klein-4b.json",
    "black-forest-labs/FLUX.2-klein-base-4B": "flux2-klein-base-4b.json",
    "hunyuanvideo-community/HunyuanVideo": "hunyuanvideo.json",
    "Qwen/Qwen-Image": "qwen-image.json",
    "stabilityai/stable-diffusion-3.5-large": "sd3.5-large.json",
    "stabilityai/stable-diffusion-3.5-medium": "sd3.5-medium.json",
    "Tongyi-MAI/Z-Image-Turbo": "z-image-turbo.json",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan2.1-1.3b.json",
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": "wan2.1-14b.json",
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": "wan2.2-a14b.json",
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": "wan2.2-5b.json",
}
"""Hub id -> file in this package with the numbers of its config files, so that a plan needs no download."""

Numbers = dict[str, Any]
"""A config file."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The config files of a diffusers pipeline."""

    source: str
    """Where they come from, for a reader."""
    index: Numbers
    """`model_index.json`: the classes of the pipeline and of its parts, and settings of the pipeline."""
    parts: dict[str, Numbers]
    """Config of each part, such as `transformer`."""

    @property
    def pipeline(self) -> str:
        """Class that `model_index.json` names."""
        return str(self.index.get("_class_name"))


def bundled_folder(name: str) -> Path:
    """Return the folder of a model that comes with the package."""
    return Path(str(resources.files("mixgrpo") / "assets" / name))


def is_hub_id(path: str) -> bool:
    """Return whether `path` can only be a hub id: owner/name, and no such folder here."""
    return not Path(path).exists() and path.count("/") == 1 and not path.startswith((".", "/"))


def read_files(path_or_hub_id: str) -> ModelFiles | None:
    """Return the config files of a model; None for a hub id that is not known here.

    Raises:
        ModelError: if it is neither bundled, nor a diffusers folder, nor a hub id, or a file cannot be read.
    """
    if path_or_hub_id in BUNDLED:
        return _read_folder(bundled_folder(path_or_hub_id), f"{path_or_hub_id}, bundled")
    if not is_hub_id(path_or_hub_id):
        return _read_folder(Path(path_or_hub_id), path_or_hub_id)
    if path_or_hub_id not in PUBLISHED:
        return None
    published = resources.files("mixgrpo") / "shapes" / "published" / PUBLISHED[path_or_hub_id]
    parts: dict[str, Numbers] = json.loads(published.read_text(encoding="utf-8"))
    return ModelFiles(f"{path_or_hub_id}, as published", parts.pop("model_index"), parts)


def _read_folder(folder: Path, source: str) -> ModelFiles:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"model {str(folder)!r} is neither a bundled model ({', '.join(BUNDLED)}), nor a diffusers folder "
            f"(a folder with a model_index.json), nor a hub id (owner/name)"
        )
    parts = {file.parent.name: _read_json(file) for file in sorted(folder.glob("*/config.json"))}
    return ModelFiles(source, _read_json(index), parts)


def _read_json(file: Path) -> Numbers:
    try:
        numbers = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{file} is not JSON: {error}") from error
    if not isinstance(numbers, dict):
        raise ModelError(f"{file} is not a JSON object")
    return numbers
