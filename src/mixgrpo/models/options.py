"""How a pipeline is used: what `load_model` was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mixgrpo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a pipeline is used."""

    height: int
    """Pixels, a multiple of the family's `side_multiple`."""
    width: int
    num_frames: int = 1
    """Frames of a video; 1 for image models."""
    guidance_scale: float = 3.5
    """As the family's pipeline takes it, Qwen-Image's as `true_cfg_scale`; 1 or less: no classifier-free guidance, for
    Z-Image 0. Models distilled without an embedding for it (FLUX.1-schnell, FLUX.2 klein) leave it unread."""
    guidance_scale_2: float = 0.0
    """The same for the second of two transformers; 0: as `guidance_scale`."""
    negative_prompt: str = ""
    """What classifier-free guidance leads away from."""
    max_sequence_length: int = 512
    """Longest prompt, in tokens of the main text encoder."""
    autocast: torch.dtype | None = None
    """What the transformer computes in; None: in the type of its weights."""


def refuse_negatives(family: str, guidance_scale: float, *, negative_prompt: str, negatives: Sequence[str]) -> None:
    """Refuse negative prompts of a model that has no classifier-free guidance at this scale.

    Raises:
        ConfigError: if the model or a prompt has one.
    """
    lack = f"{family} has no classifier-free guidance with model.guidance_scale {guidance_scale:g}, so nothing reads"
    mend = "where the family has such a guidance, raise model.guidance_scale"
    if negative_prompt:
        raise ConfigError(f"model.negative_prompt: {lack} it; leave it empty, or, {mend}")
    if given := [negative for negative in negatives if negative]:
        raise ConfigError(
            f"prompts come with negative prompts ({len(given)} do), such as {given[0][:80]!r}, but {lack} them; "
            f"take the column negative_prompt out, or, {mend}"
        )
