"""The layers of a model as plain numbers, read from its config files: parameters, operations, bytes. No torch.

A family with a cost model is one module with a function from the config files to a `Shape`; `FAMILIES` finds it by the
class that `model_index.json` names.
"""

from collections.abc import Callable

from mixgrpo.errors import ModelError
from mixgrpo.shapes.files import BUNDLED, ModelFiles, bundled_folder, read_files
from mixgrpo.shapes.flux import flux_shape
from mixgrpo.shapes.flux2 import flux2_klein_shape, flux2_shape
from mixgrpo.shapes.hunyuan_video import hunyuan_video_shape
from mixgrpo.shapes.layers import Layer, Network, Training
from mixgrpo.shapes.qwen import qwen_image_shape
from mixgrpo.shapes.sd3 import sd3_shape
from mixgrpo.shapes.shape import ImageSize, Shape
from mixgrpo.shapes.wan import wan_shape
from mixgrpo.shapes.z_image import z_image_shape

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

FAMILIES: dict[str, Callable[[ModelFiles, ImageSize], Shape]] = {
    "FluxPipeline": flux_shape,
    "Flux2Pipeline": flux2_shape,
    "Flux2KleinPipeline": flux2_klein_shape,
    "QwenImagePipeline": qwen_image_shape,
    "StableDiffusion3Pipeline": sd3_shape,
    "ZImagePipeline": z_image_shape,
    "WanPipeline": wan_shape,
    "HunyuanVideoPipeline": hunyuan_video_shape,
}
"""Pipeline class -> its shape from the config files."""


def read_shape(path_or_hub_id: str, size: ImageSize) -> Shape | None:
    """Return the shape of a bundled model, a diffusers folder, or a hub id whose configs are known here.

    None: a hub id whose config files are not on this machine; `why_no_shape` says it.

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
    try:
        return FAMILIES[family](files, size)
    except KeyError as error:
        raise ModelError(f"model {path_or_hub_id!r}: a config file lacks {error}") from error


def why_no_shape(path_or_hub_id: str) -> str:
    """Return a sentence that says why `read_shape` knows no shape."""
    return (
        f"How large {path_or_hub_id} is is not known before it is downloaded, so neither operations nor memory can be "
        "reckoned. For a plan with both, name a local folder with --model.path."
    )
