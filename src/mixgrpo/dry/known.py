"""What is known of a model before it is there: its pipeline class, and numbers of its config files."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from mixgrpo.errors import ModelError
from mixgrpo.models.registry import MODELS, find_folder, read_index
from mixgrpo.shapes.files import BUNDLED, is_hub_id, read_files

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


_UNGUIDED = {"transformer": {"guidance_embeds": False}}

HUB: dict[str, Known] = {
    "black-forest-labs/FLUX.2-klein-9B": Known("Flux2KleinPipeline", _UNGUIDED, {"is_distilled": True}),
    "black-forest-labs/FLUX.2-klein-base-9B": Known("Flux2KleinPipeline", _UNGUIDED, {"is_distilled": False}),
    "stabilityai/stable-diffusion-3-medium-diffusers": Known("StableDiffusion3Pipeline"),
    "stabilityai/stable-diffusion-3.5-large-turbo": Known(
        "StableDiffusion3Pipeline", {"transformer": {"qk_norm": "rms_norm"}}
    ),
    "Tongyi-MAI/Z-Image": Known("ZImagePipeline"),
}
"""Hub ids whose config files the package has not: what decides the code path of their families."""


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
    if (files := read_files(path)) is not None:
        return Known(files.index["_class_name"], files.parts, _options(files.index))
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
