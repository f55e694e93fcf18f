"""The layers of a model as plain numbers, read from its config files: parameters, operations, bytes. No torch.

A family is one module with a function from the config files to a `Shape`; `FAMILIES` finds it by the class that
`model_index.json` names.
"""

from collections.abc import Callable

from mixgrpo.errors import ModelError
from mixgrpo.shapes.files import BUNDLED, ModelFiles, bundled_folder, read_files
from mixgrpo.shapes.flux import flux_shape
from mixgrpo.shapes.layers import Layer, Network, Training
from mixgrpo.shapes.shape import ImageSize, Shape

__all__ = ["BUNDLED", "FAMILIES", "ImageSize", "Layer", "Network", "Shape", "Training", "bundled_folder", "read_shape"]

FAMILIES: dict[str, Callable[[ModelFiles, ImageSize], Shape]] = {"FluxPipeline": flux_shape}
"""Pipeline class -> its shape from the config files."""


def read_shape(path_or_hub_id: str, size: ImageSize) -> Shape | None:
    """Return the shape of a bundled model, a diffusers folder, or a hub id whose configs are known here.

    None: a hub id whose config files are not on this machine.

    Raises:
        ModelError: if there is no such folder, a config file cannot be read, or the family is unknown.
    """
    files = read_files(path_or_hub_id)
    if files is None:
        return None
    family = files.pipeline
    if family not in FAMILIES:
        raise ModelError(
            f"model {path_or_hub_id!r} is of the pipeline {family!r}, which has no shape; there are: "
            f"{', '.join(FAMILIES)}"
        )
    try:
        return FAMILIES[family](files, size)
    except KeyError as error:
        raise ModelError(f"model {path_or_hub_id!r}: a config file lacks {error}") from error
