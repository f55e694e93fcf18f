"""A small random pipeline in place of a model, saved as a user's folder is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mixgrpo.dry.clips import hunyuan_video, wan
from mixgrpo.dry.images import flux, flux2, klein, qwen_image, sd3, z_image
from mixgrpo.dry.known import Known
from mixgrpo.dry.parts import shake

SMALL: dict[str, Callable[[Known], Any]] = {
    "FluxPipeline": flux,
    "Flux2Pipeline": flux2,
    "Flux2KleinPipeline": klein,
    "QwenImagePipeline": qwen_image,
    "StableDiffusion3Pipeline": sd3,
    "ZImagePipeline": z_image,
    "WanPipeline": wan,
    "HunyuanVideoPipeline": hunyuan_video,
}
"""Pipeline class -> what makes a small one."""


def small_pipeline(known: Known) -> Any:
    """Return a small pipeline of the same classes with random weights, always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return shake(SMALL[known.pipeline](known))


def save_small(known: Known, folder: Path) -> Path:
    """Save a small pipeline and return its folder."""
    small_pipeline(known).save_pretrained(folder, safe_serialization=True)
    return folder
