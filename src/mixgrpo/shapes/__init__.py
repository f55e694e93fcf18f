"""The layers of a model as plain numbers, read from its config files: parameters, operations, bytes. No torch.

A family with a cost model is one module with a function from the config files to a `Shape`; `FAMILIES` finds it by the
class that `model_index.json` names.
"""

from collections.abc import Callable

from mixgrpo.errors import ModelError
from mixgrpo.shapes.files import BUNDLED, ModelFiles, bundled_folder, read_files
from mixgrpo.shapes.flux import flux_shape
from mixgrpo.shapes.layers import Layer, Network, Training
from mixgrpo.shapes.qwen import qwen_image_shape
from mixgrpo.shapes.shape import ImageSize, Shape

__all__ = [
    "BUNDLED",
    "FAMILIES",
    "ImageSize",
    "Layer",
    "Network",
    "Shape",
    "Training",
    "bundled_folder",
    "read_shape",
    "why_no_shape",
]

FAMILIES: dict[str, Callable[[ModelFiles, ImageSize], Shape] | None] = {
    "FluxPipeline": flux_shape,
    "Flux2Pipeline": None,
    "Flux2KleinPipeline": None,
    "QwenImagePipeline": qwen_image_shape,
    "StableDiffusion3Pipeline": None,
    "ZImagePipeline": None,
    "WanPipeline": None,
    "HunyuanVideoPipeline": None,
}
"""Pipeline class -> its shape from the config files; None: no cost model yet."""


def read_shape(path_or_hub_id: str, size: ImageSize) -> Shape | None:
    """Return the shape of a bundled model, a diffusers folder, or a hub id whose configs are known here.

    None: a hub id whose config files are not on this machine, or a family without a cost model; `why_no_shape` says it.

    Raises:
        ModelError: if there is no such folder, a config file cannot be read, or the family is unknown.
    """
    files = read_files(path_or_hub_id)
    if files is None:
        return None
    family = files.pipeline
    if family not in FAMILIES:
        raise ModelError(
            f"model {path_or_hub_id!r} is of the pipeline {family!r}, which has no adapter; there are: "
            f"{', '.join(FAMILIES)}"
        )
    shape_of_family = FAMILIES[family]
    try:
        return None if shape_of_family is None else shape_of_family(files, size)
    except KeyError as error:
        raise ModelError(f"model {path_or_hub_id!r}: a config file lacks {error}") from error


def why_no_shape(path_or_hub_id: str) -> str:
    """Return a sentence that says why `read_shape` knows no shape."""
    files = read_files(path_or_hub_id)
    if files is not None:
        return (
            f"There is no cost model for this family ({files.pipeline}) yet, so neither operations nor memory can be "
            "reckoned. --calibrate times the model itself."
        )
    return (
        f"How large {path_or_hub_id} is is not known before it is downloaded, so neither operations nor memory can be "
        "reckoned. For a plan with both, name a local folder with --model.path."
    )
