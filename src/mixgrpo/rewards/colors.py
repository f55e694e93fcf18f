"""Whether ink and ground of a picture have the colours that the prompt asks for: `... in INK on GROUND`.

Works on the pixels, without weights. A picture of the asked kind holds ground pixels, ink pixels, and pixels
between the two (smoothed edges), which lie on the straight line from ground to ink in sRGB, because that is
how edges are drawn. Three things are therefore asked of it:

- ground: the frame of the picture, and at least half of all its pixels, have the ground's colour;
- ink: at least `_MIN_INK` of all pixels have the ink's colour; with less ink the score falls in proportion;
- purity: what is not ground lies on the line to the asked ink; anything else, as a letter in a third colour,
  counts against.

The score is the product, so that no part can be had by giving up another: an empty ground scores 0, and so
does a page full of ink, swapped colours, or noise. It does not look at shapes: whether the ink forms a word
is the OCR's business.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixgrpo.errors import RewardError
from mixgrpo.rewards.base import Scores, mask_unscorable
from mixgrpo.rewards.palette import PALETTE

_COLORS = {name: torch.tensor(rgb) / 255 for name, rgb in PALETTE.items()}

_MIN_INK = 0.02
"""Share of the pixels that must be ink. In flux-nano's pictures `III` covers 0.03, `CAT` 0.05, six letters 0.1 up."""

_FRAME = 1 / 16
"""Thickness of the frame that must be ground, as a share of the picture's shorter side."""

_TOLERANCE = 0.06
"""Distance in sRGB (each channel in [0, 1]) that is no difference: noise, rounding, the losses of a VAE."""

_FALLOFF = 0.15
"""Distance beyond the tolerance at which closeness is 1/e. The two nearest named colours are 0.32 apart: 0.05."""

_NO_INK, _FULL_INK = 0.5, 0.85
"""Shares of ink in a pixel, the rest being ground, up to which it is no ink at all and from which it is nothing else.

Thin strokes that are a little blurred are nowhere pure ink; halfway between red and yellow, though, is orange.
"""

_IN_ON = re.compile(r"\bin (\w+) on (\w+)", re.IGNORECASE)
_QUOTED = re.compile(r'["\u201c\u201d][^"\u201c\u201d]*["\u201c\u201d]')


class Asked(NamedTuple):
    """The colours that a prompt asks for, by name."""

    ink: str
    ground: str


class Measured(NamedTuple):
    """How well one picture has the asked colours, each a scalar in [0, 1]."""

    ink: Tensor
    ground: Tensor


class ColorReward:
    """Scores ink and ground against the asked colours.

    The score is ink x ground, in [0, 1]; the details `ink` (purity included) and `ground` are the two
    factors. The detail `exact` does not know what was asked: it is 1 where the named colours nearest to the
    picture's own ground and ink are the asked ones.
    """

    name = "colors"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Score images [B, 3, H, W] in [0, 1] against prompts: values and details, [B], in [0, 1].

        Raises:
            RewardError: A prompt does not say `in INK on GROUND`, or names a colour that is not in the
                palette.
        """
        asked = [asked_colors(prompt) for prompt in prompts]
        # One by one, so that no score depends on which other pictures were scored with it.
        pictures = images.detach().nan_to_num().clamp(0, 1).to("cpu", torch.float32)
        measured = [measure(picture, colors) for picture, colors in zip(pictures, asked, strict=True)]
        exact = [float(name_colors(picture) == colors) for picture, colors in zip(pictures, asked, strict=True)]
        ink = mask_unscorable(torch.stack([m.ink for m in measured]), images)
        ground = mask_unscorable(torch.stack([m.ground for m in measured]), images)
        details = {"ink": ink, "ground": ground, "exact": mask_unscorable(torch.tensor(exact), images)}
        return Scores(ink * ground, details)


def asked_colors(prompt: str) -> Asked:
    """Return the ink and ground that a prompt asks for; what stands in double quotes does not count.

    Raises:
        RewardError: The prompt does not say `in INK on GROUND` with two different names of the palette.
    """
    found = _IN_ON.search(_QUOTED.sub("", prompt))
    colors = Asked(found[1].lower(), found[2].lower()) if found else None
    if colors is None or not set(colors) <= PALETTE.keys() or colors.ink == colors.ground:
        raise RewardError(
            f"the colors reward found no two colours in the prompt {prompt!r}. It must say 'in INK on GROUND' with two "
            f"different ones of: {', '.join(PALETTE)}"
        )
    return colors


def measure(picture: Tensor, asked: Asked) -> Measured:
    """Measure how well a picture [3, H, W] in [0, 1] has the asked colours."""
    ink, ground = _COLORS[asked.ink], _COLORS[asked.ground]
    pixels = picture.flatten(1).T
    like_ground = _closeness(pixels, ground)
    # Each pixel as a mixture of ground and asked ink, and how close it is to being one.
    line = ink - ground
    coverage = ((pixels - ground) @ line / line.dot(line)).clamp(0, 1)
    on_line = _closeness(pixels, ground + coverage[:, None] * line)
    foreign = 1 - like_ground
    purity = (foreign * on_line).sum() / foreign.sum().clamp(min=1e-6)
    # The ink is looked for where the picture differs most from the ground. Not where it is most like the ink: the
    # edges of a yellow letter on red are orange. Half of those pixels may be something else: specks are for purity.
    amount = math.ceil(_MIN_INK * len(pixels))
    farthest = (pixels - ground).norm(dim=1).topk(2 * amount).indices
    like_ink = on_line * ((coverage - _NO_INK) / (_FULL_INK - _NO_INK)).clamp(0, 1)
    strongest = like_ink[farthest].topk(amount).values.mean()
    frame = _closeness(_frame(picture), ground).mean()
    bulk = like_ground.topk(math.ceil(len(pixels) / 2)).values.mean()
    return Measured(ink=strongest * purity, ground=torch.minimum(frame, bulk))


def name_colors(picture: Tensor) -> Asked:
    """Name the colours of a picture [3, H, W] in [0, 1] without knowing what was asked.

    The ground is the median of the frame; the ink, the mean of the `_MIN_INK` pixels farthest from it. Both
    get the name of the nearest colour of the palette: an empty picture has an ink of its ground's name.
    """
    pixels = picture.flatten(1).T
    ground = _frame(picture).median(dim=0).values
    farthest = (pixels - ground).norm(dim=1).topk(math.ceil(_MIN_INK * len(pixels))).indices
    return Asked(ink=_nearest(pixels[farthest].mean(dim=0)), ground=_nearest(ground))


def _frame(picture: Tensor) -> Tensor:
    """Return the pixels of a picture [3, H, W] along its four edges, [N, 3]."""
    height, width = picture.shape[-2:]
    thickness = max(1, round(min(height, width) * _FRAME))
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[thickness:-thickness, thickness:-thickness] = True
    return picture[:, ~inside].T


def _closeness(pixels: Tensor, color: Tensor) -> Tensor:
    """Say how close pixels [N, 3] are to a colour [3], or to one each [N, 3]: [N], from 1 (equal) towards 0."""
    beyond = ((pixels - color).norm(dim=1) - _TOLERANCE).clamp(min=0)
    return torch.exp(-((beyond / _FALLOFF) ** 2))


def _nearest(color: Tensor) -> str:
    return min(_COLORS, key=lambda name: float((_COLORS[name] - color).norm()))
