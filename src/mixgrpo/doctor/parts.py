"""Which files of a pipeline's folder or repository diffusers loads, and which of them are not there."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mixgrpo.errors import ModelError

INDEX = "model_index.json"

Index = Mapping[str, Any]
"""What a `model_index.json` says."""

_PLAIN = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""Weights as they are loaded: no variant, such as `model.fp16.safetensors`, and no pickle."""
_WEIGHTS = re.compile(r".*\.(safetensors|bin|msgpack|h5|onnx|pb|ckpt|pt|pth|gguf)(\.index(\.\w+)?\.json)?")
_WITHOUT_WEIGHTS = re.compile(r".*(Scheduler|Tokenizer|TokenizerFast|Processor|FeatureExtractor)")
"""Classes of parts that are config files alone."""


def parts_of(index: Index) -> dict[str, str]:
    """Return the class of every part that a pipeline has, by the name of its folder."""
    return {name: str(kind[1]) for name, kind in index.items() if isinstance(kind, list) and len(kind) == 2 and kind[1]}


def loaded_files(index: Index, names: Iterable[str]) -> list[str]:
    """Return those of a repository's files that diffusers downloads for the pipeline.

    Of a part with weights: the safetensors that are no variant, and the config. Of the others, such as tokenizers, all.
    """
    by_part: dict[str, list[str]] = {part: [] for part in parts_of(index)}
    for name in names:
        part, _, file = name.partition("/")
        if part in by_part and "/" not in file:
            by_part[part].append(file)
    return [f"{part}/{file}" for part, files in by_part.items() for file in _loaded(files)]


def _loaded(files: list[str]) -> list[str]:
    if not any(_WEIGHTS.fullmatch(file) for file in files):
        return files
    return [file for file in files if file == "config.json" or _PLAIN.fullmatch(file)]


def lacking_parts(index: Index, names: Iterable[str]) -> list[str]:
    """Return the parts of which a repository has no file that diffusers loads, or no such weights."""
    loaded = loaded_files(index, names)
    return [part for part, kind in parts_of(index).items() if not _is_there(part, kind, loaded)]


def missing_parts(folder: Path) -> list[str]:
    """Return the parts whose files are not all in a pipeline's folder, for diffusers to load.

    Raises:
        ModelError: if a file that says which others there are cannot be read.
    """
    index = _read_json(folder / INDEX)
    names = [f"{file.parent.name}/{file.name}" for file in folder.glob("*/*") if file.is_file()]
    missing = set(lacking_parts(index, names))
    for file in folder.glob("*/*.safetensors.index.json"):
        shards = set(_read_json(file)["weight_map"].values())
        if not all((file.parent / shard).is_file() for shard in shards):
            missing.add(file.parent.name)
    return [part for part in parts_of(index) if part in missing]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error


def _is_there(part: str, kind: str, loaded: Iterable[str]) -> bool:
    files = [name.removeprefix(f"{part}/") for name in loaded if name.startswith(f"{part}/")]
    if _WITHOUT_WEIGHTS.fullmatch(kind):
        return bool(files)
    return any(file.endswith(".safetensors") for file in files)
