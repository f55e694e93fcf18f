"""How well a text that was read agrees with the one that the prompt asks for, whoever read it.

The task is Flow-GRPO's (https://arxiv.org/abs/2505.05470): score 1 - (edit distance) / (length of the asked word).
"""

import re
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from mixgrpo.errors import RewardError
from mixgrpo.rewards.base import Scores, mask_unscorable

_QUOTED = re.compile(r'["\u201c\u201d]([^"\u201c\u201d]*)["\u201c\u201d]')


def asked_word(prompt: str) -> str:
    """Return the first text in double quotes of a prompt, as written.

    Raises:
        RewardError: There is none, or nothing but spaces.
    """
    quoted = _QUOTED.search(prompt)
    if quoted is None or not quoted[1].strip():
        raise RewardError(
            f"there is no word in double quotes in the prompt {prompt!r}, so none to look for in the picture. "
            f'Ask for one, as in: the word "RIVER" in red on white'
        )
    return quoted[1]


def score_spelling(read: Sequence[str], images: Tensor, prompts: Sequence[str]) -> Scores:
    """Compare the texts read in images [B, 3, H, W] with those asked for: values and `exact`, [B], in [0, 1].

    The score is 1 - (edit distance) / (length of the asked word), clipped to [0, 1]. The detail `exact` is 1
    where the two are equal. Case and spaces are ignored on both sides, and full-width letters count as
    ordinary ones: several capitals are only larger small letters, and a gap is a space or is not depending on
    the typeface. Everything else counts, letters beyond the asked word included, so writing more than was
    asked never pays.

    Raises:
        RewardError: A prompt has no text in double quotes.
    """
    pairs = [(_comparable(text), _comparable(asked_word(prompt))) for text, prompt in zip(read, prompts, strict=True)]
    values = torch.tensor([max(0.0, 1 - edit_distance(a, b) / len(b)) for a, b in pairs])
    exact = torch.tensor([float(a == b) for a, b in pairs])
    return Scores(mask_unscorable(values, images), {"exact": mask_unscorable(exact, images)})


def edit_distance(a: str, b: str) -> int:
    """Return how many letters must be put in, taken out or replaced to turn `a` into `b` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        above, row = row, [i]
        for j, other in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != other)))
    return row[-1]


def as_saved(images: Tensor) -> Tensor:
    """Return images in [0, 1] with colours rounded to 8 bits, float32 on the CPU: what a saved file shows.

    Pixels that are not finite become numbers too: a reader must not trip over them, and the score of such a
    picture is NaN whatever is read.
    """
    return (images.detach().nan_to_num().clamp(0, 1) * 255).round().to("cpu", torch.float32) / 255


def _comparable(text: str) -> str:
    """Drop what the score ignores: case, spaces, and the width of letters."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
