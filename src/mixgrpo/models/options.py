"""How a pipeline is used: what `load_model` was asked for."""

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


def refuse_negative_prompt(options: ModelOptions, family: str) -> None:
    """Refuse a negative prompt where nothing would read it.

    Raises:
        ConfigError: if there is one.
    """
    if options.negative_prompt:
        raise ConfigError(
            f"model.negative_prompt: {family} takes guidance as an embedding and has no negative prompt; leave it empty"
        )
