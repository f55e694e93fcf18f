"""Rewards of images asked about clips, and rewards of clips asked about images.

A reward that says `takes_video = True` gets clips [B, F, 3, H, W], and images as clips of one frame. Any other gets the
frames of a clip as images, one clip at a time, and the clip's score is the mean over its frames. A clip with a frame
that has no score has none either: if such frames were left out, drawing some that cannot be scored would pay.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mixgrpo.rewards.base import Reward, Scores


@runtime_checkable
class TakesVideo(Protocol):
    """What says of itself whether it wants clips."""

    takes_video: bool


def takes_video(reward: object) -> bool:
    """Return whether a reward, or a function that is to be one, wants clips."""
    return isinstance(reward, TakesVideo) and reward.takes_video


def questions(reward: Reward, images: Tensor, prompts: Sequence[str]) -> list[tuple[Tensor, list[str]]]:
    """Return what to call `reward` with, in turn, about images [B, 3, H, W] or clips [B, F, 3, H, W]."""
    if takes_video(reward):
        return [(images if images.ndim == 5 else images[:, None], list(prompts))]
    if images.ndim == 4:
        return [(images, list(prompts))]
    return [(clip, [prompt] * len(clip)) for clip, prompt in zip(images, prompts, strict=True)]


def mean_over_frames(frames: Scores) -> Scores:
    """Return the scores and details of one clip, each [1], from those of its frames, each [F]."""
    details = {key: figures.mean(0, keepdim=True) for key, figures in frames.details.items()}
    return Scores(frames.values.mean(0, keepdim=True), details, frames.failures[:1])


def join_scores(rows: Sequence[Scores]) -> Scores:
    """Put the scores of single pictures together; a detail that a picture does not have is NaN there."""
    missing = torch.tensor([float("nan")])
    keys = list(dict.fromkeys(key for row in rows for key in row.details))
    details = {key: torch.cat([row.details.get(key, missing) for row in rows]) for key in keys}
    return Scores(
        torch.cat([row.values for row in rows]), details, [failure for row in rows for failure in row.failures]
    )
