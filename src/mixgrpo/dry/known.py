"""What is known of a model before it is there: its pipeline class, and numbers of its config files."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from mixgrpo.errors import ModelError
from mixgrpo.models.registry import MODELS, find_folder, read_index
from mixgrpo.shapes.files import BUNDLED, PUBLISHED, is_hub_id

Numbers = Mapping[str, Any]
"""A config file."""

_SCHEDULER = "scheduler/scheduler_config.json"


@dataclass(frozen=True, slots=True)
class Known:
    """What decides the code path of a model: everything in its config files but sizes."""

    pipeline: str
    """Class that `model_index.json` names."""
    parts: Mapping[str, Numbers] = field(default_factory=dict[str, Numbers])
    """Config of each part, as far as it is known."""
    index: Numbers = field(default_factory=dict[str, Any])
    """Options of the pipeline itself, such as `is_distilled`."""
    least: Mapping[str, int] = field(default_factory=dict[str, int])
    """List of blocks -> how many of them there must be, because settings name the last."""

    def part(self, name: str) -> dict[str, Any]:
        """Return the config of a part without diffusers' own entries; empty if nothing is known."""
        return {key: value for key, value in self.parts.get(name, {}).items() if not key.startswith("_")}

    def depth(self, blocks: str, key: str, *, small: int = 1) -> int:
        """Return how many blocks a small transformer has: few, but all that are named, and no more than there are."""
        there = self.part("transformer").get(key)
        named = self.least.get(blocks, 0)
        return max(small, named if there is None else min(named, there))


_GUIDED, _UNGUIDED = {"transformer": {"guidance_embeds": True}}, {"transformer": {"guidance_embeds": False}}
_SD35 = {"transformer": {"qk_norm": "rms_norm"}}
_MMDIT_X = {"transformer": {"qk_norm": "rms_norm", "dual_attention_layers": list(range(13)), "num_layers": 24}}
_WAN_22_VAE = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}

HUB: dict[str, Known] = {
    "black-forest-labs/FLUX.1-Krea-dev": Known("FluxPipeline", _GUIDED),
    "black-forest-labs/FLUX.1-schnell": Known("FluxPipeline", _UNGUIDED),
    "black-forest-labs/FLUX.2-dev": Known("Flux2Pipeline", _GUIDED),
    "black-forest-labs/FLUX.2-klein-4B": Known("Flux2KleinPipeline", _UNGUIDED, {"is_distilled": True}),
    "black-forest-labs/FLUX.2-klein-9B": Known("Flux2KleinPipeline", _UNGUIDED, {"is_distilled": True}),
    "black-forest-labs/FLUX.2-klein-base-4B": Known("Flux2KleinPipeline", _UNGUIDED, {"is_distilled": False}),
    "black-forest-labs/FLUX.2-klein-base-9B": Known("Flux2KleinPipeline", _UNGUIDED, {"is_distilled": False}),
    "stabilityai/stable-diffusion-3-medium-diffusers": Known("StableDiffusion3Pipeline"),
    "stabilityai/stable-diffusion-3.5-medium": Known("StableDiffusion3Pipeline", _MMDIT_X),
    "stabilityai/stable-diffusion-3.5-large": Known("StableDiffusion3Pipeline", _SD35),
    "stabilityai/stable-diffusion-3.5-large-turbo": Known("StableDiffusion3Pipeline", _SD35),
    "Tongyi-MAI/Z-Image-Turbo": Known("ZImagePipeline"),
    "Tongyi-MAI/Z-Image": Known("ZImagePipeline"),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": Known("WanPipeline"),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": Known("WanPipeline"),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": Known("WanPipeline", {}, {"boundary_ratio": 0.875}),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": Known("WanPipeline", {"vae": _WAN_22_VAE}, {"expand_timesteps": True}),
    "hunyuanvideo-community/HunyuanVideo": Known("HunyuanVideoPipeline", _GUIDED),
}
"""Hub ids whose config files the package has not, or not all of: what decides the code path of their families."""


def find_known(path: str, revision: str = "", *, targets: Sequence[str] = ()) -> Known:
    """Return what is known of a bundled model, a folder or a hub id; `targets` are layers that settings name.

    Of a hub id that the package does not know, model_index.json alone is read, from the hub's cache or the hub.

    Raises:
        ModelError: if there is no such model, its family has no adapter, or neither package nor hub know it.
    """
    known = _find(path, revision)
    if known.pipeline not in MODELS:
        families = ", ".join(MODELS)
        raise ModelError(
            f"model {path!r} is of the pipeline {known.pipeline!r}, which has no adapter; there are: {families}"
        )
    return Known(known.pipeline, known.parts, known.index, named_blocks(targets))


def named_blocks(targets: Sequence[str]) -> dict[str, int]:
    """Return how many blocks of each list there must be for names such as `transformer_blocks.18.attn.to_q`."""
    counts: dict[str, int] = {}
    for target in targets:
        if found := re.search(r"(?:^|\.)(\w+)\.(\d+)\.", target):
            counts[found[1]] = max(counts.get(found[1], 0), int(found[2]) + 1)
    return counts


def _find(path: str, revision: str) -> Known:
    if path in BUNDLED or not is_hub_id(path):
        return _read_folder(find_folder(path))
    if path in PUBLISHED:
        file = resources.files("mixgrpo") / "shapes" / "published" / PUBLISHED[path]
        parts: dict[str, Numbers] = json.loads(file.read_text(encoding="utf-8"))
        index, more = parts.pop("model_index"), HUB.get(path, Known(""))
        parts |= {name: {**numbers, **parts.get(name, {})} for name, numbers in more.parts.items()}
        return Known(index["_class_name"], parts, {**more.index, **_options(index)})
    if path in HUB:
        return HUB[path]
    try:
        index_file = hf_hub_download(path, "model_index.json", revision=revision or None)
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise ModelError(
            f"what kind of model {path!r} is is not known here, and its model_index.json cannot be had from the hub: "
            f"{said} Where there is a network, fetch its config files, a few kilobytes, with: hf download {path} "
            f"--include '*.json' --local-dir FOLDER; then give --model.path FOLDER to the dry run"
        ) from error
    return _read_folder(Path(index_file).parent)


def _read_folder(folder: Path) -> Known:
    index = read_index(folder)
    files = [*folder.glob("*/config.json"), *folder.glob(_SCHEDULER)]
    try:
        parts = {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
    except json.JSONDecodeError as error:
        raise ModelError(f"a config file in {folder} is not JSON: {error}") from error
    return Known(str(index.get("_class_name")), parts, _options(index))


def _options(index: Numbers) -> dict[str, Any]:
    """Return what `model_index.json` says beside the classes."""
    return {key: value for key, value in index.items() if not key.startswith("_") and not isinstance(value, list)}
