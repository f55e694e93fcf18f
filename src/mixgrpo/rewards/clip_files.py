"""CLIP models as open_clip and as transformers publish them, and how their pictures are prepared."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import CLIPModel
from transformers.image_processing_base import ImageProcessingMixin

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.open_clip import Architecture, build_clip
from mixgrpo.rewards.pixels import CLIP_MEAN, CLIP_STD, Fit, Preparation
from mixgrpo.rewards.sources import CONFIG, WEIGHTS, Names, Source, listed, quiet

_BICUBIC = 3  # Pillow's number of the filter, as preprocessor_config.json has it
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CLIP_FILES: tuple[Names, ...] = ((_OPEN_CLIP_CONFIG, *CONFIG), (*_OPEN_CLIP_WEIGHTS, *WEIGHTS))
"""What a model of either form has."""
_OPEN_CLIP_FITS: dict[str, Fit] = {"shortest": "crop_even", "squash": "squash"}


class Clip(NamedTuple):
    """A CLIP model and how its pictures are prepared."""

    model: CLIPModel
    prepare: Preparation


def load_clip(source: Source) -> Clip:
    """Load a CLIP model, float32, as open_clip publishes it (open_clip_config.json), or else as transformers does.

    Raises:
        ConfigError: It is neither, not all there, or cannot be reached.
    """
    published = source.find(_OPEN_CLIP_CONFIG)
    if published is None or published.name != _OPEN_CLIP_CONFIG:
        return Clip(source.load_model(CLIPModel), read_preparation(source))
    weights = source.require(*_OPEN_CLIP_WEIGHTS)
    try:
        fields = json.loads(published.read_text(encoding="utf-8"))
        architecture = _read_architecture(fields["model_cfg"])
        prepare = _read_open_clip_preparation(fields.get("preprocess_cfg", {}), architecture.image_size)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise source.error(f"{published} does not describe a CLIP of two transformers: {error}") from error
    return Clip(build_clip(source.read_weights(weights), architecture, who=f"{source}: {weights}"), prepare)


def read_architecture(file: Path, source: Source) -> Architecture:
    """Return the architecture that a file with open_clip's `model_cfg` describes.

    Raises:
        ConfigError: It describes none of two transformers.
    """
    try:
        return _read_architecture(json.loads(file.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise source.error(f"{file} does not describe a CLIP of two transformers: {error}") from error


def read_preparation(source: Source) -> Preparation:
    """Return how transformers prepares pictures for the model of a folder or a hub repository.

    Raises:
        ConfigError: It is not said there, or it is something that this reward cannot do.
    """
    source.check_exists()
    try:
        with quiet():
            fields: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(source.place)[0]
    except OSError as error:
        raise source.unreadable(error) from error
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
