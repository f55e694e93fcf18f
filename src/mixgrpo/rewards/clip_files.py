"""Finding and reading the files of rewards that are CLIP models: folders, single files, or repositories of the hub.

Whatever is missing, out of reach or of another kind ends in one `ConfigError` that says what was looked for and how
to get it. Pickled files are read with `weights_only`, so none can run code.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast
from zipfile import is_zipfile

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import logging

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.open_clip import Architecture, build_clip, listed
from mixgrpo.rewards.pixels import CLIP_MEAN, CLIP_STD, Fit, Preparation
from mixgrpo.shapes.files import is_hub_id

TOKENIZER_FILES = "config.json tokenizer.json tokenizer_config.json vocab.json merges.txt"
"""The files of a hub's repository that make its tokeniser."""

_BICUBIC = 3  # Pillow's number of the filter, as preprocessor_config.json has it
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_OPEN_CLIP_FITS: dict[str, Fit] = {"shortest": "crop_even", "squash": "squash"}


class Source(NamedTuple):
    """Where an option says that files lie, and what its messages call it."""

    reward: str
    option: str
    path: str
    """A folder, a file, or a hub id."""
    command: str
    """What fetches the published files, with their place as FOLDER."""

    @classmethod
    def of_hub(cls, reward: str, option: str, path: str, *, published: str) -> "Source":
        """Return a source whose published files are a hub repository, or one file of it after a space."""
        return cls(reward, option, path, f"hf download {published} --local-dir FOLDER")

    def __str__(self) -> str:
        """Name the option with its value: the beginning of a message."""
        return f"the {self.reward} reward: options.{self.option} {self.path!r}"

    def advice(self) -> str:
        """Say how to get the published files."""
        return f"Get it, where there is a network, with: {self.command}; then set options.{self.option} to that folder"


class Clip(NamedTuple):
    """A CLIP model and how its pictures are prepared."""

    model: CLIPModel
    prepare: Preparation


def find_file(source: Source, *names: str) -> Path | None:
    """Return the first of the files `names` that the folder or the hub's repository has; None where there is none.

    If `source.path` is a file itself, return that.

    Raises:
        ConfigError: There is no such folder, and it is no hub id either, or none that the hub lets one read.
    """
    path = Path(source.path)
    if path.is_file():
        return path
    if path.is_dir():
        return next((path / name for name in names if (path / name).is_file()), None)
    if not is_hub_id(source.path):
        raise ConfigError(f"{source} is neither a file, nor a folder, nor a hub id (owner/name). {source.advice()}")
    for name in names:
        try:
            return Path(hf_hub_download(source.path, name))
        except EntryNotFoundError:  # also where the hub is out of reach, for the next name may lie in the cache
            continue
        except (OSError, HFValidationError) as error:
            raise _unreachable(source, error) from error
    return None


def require_file(source: Source, *names: str) -> Path:
    """Return what `find_file` finds.

    Raises:
        ConfigError: It finds nothing.
    """
    file = find_file(source, *names)
    if file is not None:
        return file
    wanted = f"file {' or '.join(names)}"
    if is_hub_id(source.path):
        raise ConfigError(
            f"{source} is no folder here, and the hub has no {wanted} under that name or cannot be reached. "
            f"{source.advice()}"
        )
    raise ConfigError(f"{source} has no {wanted}. {source.advice()}")


def read_weights(file: Path, source: Source) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a state dict in torch's format, bare or under `state_dict`.

    Raises:
        ConfigError: The file cannot be read without running code of its own, or holds something else.
    """
    safe = file.suffix == ".safetensors"
    if not safe and not is_zipfile(file):  # torch's format since 1.6; half a download has no end of a zip file
        raise ConfigError(f"{source}: {file} is no file of torch's, or not all of one. {source.advice()}")
    try:
        content = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise ConfigError(
            f"{source}: {file} cannot be read as weights alone: {_first_line(error)}. {source.advice()}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConfigError(f"{source}: {file} holds something other than named weights. {source.advice()}")
    return dict(state)


def load_clip(source: Source) -> Clip:
    """Load a CLIP model, float32, as open_clip publishes it (open_clip_config.json), or else as transformers does.

    Raises:
        ConfigError: It is neither, not all there, or cannot be reached.
    """
    published = find_file(source, _OPEN_CLIP_CONFIG)
    if published is None or published.name != _OPEN_CLIP_CONFIG:
        return Clip(load_clip_model(source), read_preparation(source))
    weights = require_file(source, *_OPEN_CLIP_WEIGHTS)
    try:
        fields = json.loads(published.read_text(encoding="utf-8"))
        architecture = _read_architecture(fields["model_cfg"])
        prepare = _read_open_clip_preparation(fields.get("preprocess_cfg", {}), architecture.image_size)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{source}: {published} does not describe a CLIP of two transformers: {error}") from error
    return Clip(build_clip(read_weights(weights, source), architecture, who=f"{source}: {weights}"), prepare)


def read_architecture(file: Path, source: Source) -> Architecture:
    """Return the architecture that a file with open_clip's `model_cfg` describes.

    Raises:
        ConfigError: It describes none of two transformers.
    """
    try:
        return _read_architecture(json.loads(file.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{source}: {file} does not describe a CLIP of two transformers: {error}") from error


def load_clip_model(source: Source) -> CLIPModel:
    """Load a `CLIPModel` of transformers, float32, from a folder or the hub, every weight of it.

    Raises:
        ConfigError: It is of another kind, weights are missing or left over, or it cannot be reached.
    """
    try:
        with _quiet():
            kind = CLIPConfig.get_config_dict(source.path)[0].get("model_type")
            if kind != CLIPConfig.model_type:
                raise ConfigError(f"{source} is a model of type {kind!r}, but this reward needs a 'clip' model")
            model, report = cast(Any, CLIPModel).from_pretrained(
                source.path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _unreachable(source, error) from error
    problems = {
        "missing": sorted(report["missing_keys"]),
        # older files hold the numbers 0, 1, 2, ... of the positions too
        "unknown": sorted(key for key in report["unexpected_keys"] if not key.endswith("embeddings.position_ids")),
        "of the wrong shape": sorted(str(entry[0]) for entry in report["mismatched_keys"]),
    }
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in problems.items() if names)
        raise ConfigError(f"{source}: the weights do not fit the config.json beside them: {found}. {source.advice()}")
    return model


def load_tokenizer(source: Source) -> Any:
    """Load the tokeniser of a folder or a hub repository; no code of its own is run.

    Raises:
        ConfigError: There is none, or it cannot be reached.
    """
    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(source.path, use_fast=True)
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable(source, error) from error


def read_preparation(source: Source) -> Preparation:
    """Return how transformers prepares pictures for the model of a folder or a hub repository.

    Raises:
        ConfigError: It is not said there, or it is something that this reward cannot do.
    """
    try:
        with _quiet():
            fields: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(source.path)[0]
    except OSError as error:
        raise _unreachable(source, error) from error
    size, crop = (_sides(fields.get(name)) for name in ("size", "crop_size"))
    crop = crop if fields.get("do_center_crop", True) else {}
    squashed, resample = size.keys() == {"height", "width"}, fields.get("resample", _BICUBIC)
    sides = {*size.values(), *crop.values()}  # all one: what is cut out is the whole of the shorter side
    if len(sides) != 1 or not (squashed or crop) or resample != _BICUBIC:
        raise ConfigError(
            f"{source}: its preprocessor_config.json asks for the size {size}, the crop {crop} and the filter "
            f"{resample}. Only squares scaled with the bicubic filter ({_BICUBIC}) are known"
        )
    mean, std = (tuple(fields.get(name, known)) for name, known in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)))
    return Preparation(size=sides.pop(), fit="squash" if squashed else "crop", mean=mean, std=std)


def _sides(size: Any) -> dict[str, Any]:
    """Return a size of a preprocessor_config.json as a table: older files have a number."""
    return {"shortest_edge": size} if isinstance(size, int) else dict(size or {})


def _read_architecture(fields: Mapping[str, Any]) -> Architecture:
    """Return the numbers of open_clip's `model_cfg`; a ValueError names what no plain CLIP has."""
    vision, text = dict(fields["vision_cfg"]), dict(fields["text_cfg"])
    vision_width = vision.pop("width")
    architecture = Architecture(
        embed_dim=fields["embed_dim"],
        image_size=vision.pop("image_size"),
        patch_size=vision.pop("patch_size"),
        vision_width=vision_width,
        vision_layers=vision.pop("layers"),
        vision_heads=vision_width // vision.pop("head_width", 64),
        text_width=text.pop("width"),
        text_layers=text.pop("layers"),
        text_heads=text.pop("heads"),
        context_length=text.pop("context_length", 77),
        vocab_size=text.pop("vocab_size", 49408),
        activation="quick_gelu" if fields.get("quick_gelu", False) else "gelu",
    )
    left = {**vision, **text, **fields}
    used = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    if unknown := [name for name, value in left.items() if name not in used and value not in (None, False)]:
        raise ValueError(f"it has {listed(sorted(unknown))}, which only other architectures have")
    return architecture


def _read_open_clip_preparation(fields: Mapping[str, Any], size: int) -> Preparation:
    """Return what open_clip's `preprocess_cfg` says; a ValueError names what is not known here."""
    mode, kernel = fields.get("resize_mode", "shortest"), fields.get("interpolation", "bicubic")
    if mode not in _OPEN_CLIP_FITS or kernel != "bicubic":
        raise ValueError(
            f"pictures are to be scaled with {kernel!r} and {mode!r}; known are 'bicubic' and {list(_OPEN_CLIP_FITS)}"
        )
    mean, std = tuple(fields.get("mean", CLIP_MEAN)), tuple(fields.get("std", CLIP_STD))
    return Preparation(size=size, fit=_OPEN_CLIP_FITS[mode], mean=mean, std=std)


def _unreachable(source: Source, error: Exception) -> ConfigError:
    where = " is no folder here, and from the hub it" if is_hub_id(source.path) else ""
    return ConfigError(f"{source}{where} cannot be loaded: {_first_line(error)}. {source.advice()}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own remarks out of the terminal: what is wrong, an error here says."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
