"""Judges pictures with the project's own rewards, as the recipe goes."""

from collections.abc import Sequence

from torch import Tensor

from mixgrpo.rewards.colors import ColorReward
from mixgrpo.rewards.ocr import OcrReward


def judge(images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Return what share of the pictures is right, and the mean scores, of pictures in [0, 1], [batch, 3, 32, 96].

    `exact` and `colors_exact` are shares of pictures with the asked word and with the asked colours.
    """
    words, colors = OcrReward(threads=2)(images, prompts), ColorReward()(images, prompts)
    return {
        "exact": words.details["exact"].mean().item(),
        "ocr": words.values.mean().item(),
        "colors_exact": colors.details["exact"].mean().item(),
        "colors": colors.values.mean().item(),
    }
