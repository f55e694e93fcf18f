"""Pictures of words in the palette's colours, drawn with the typeface inside Pillow."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mixgrpo.rewards.palette import PALETTE

DrawWord = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def draw_word() -> DrawWord:
    """Return a function that draws one word, float32 [3, height, width] in [0, 1]."""

    def draw(
        word: str, ink="black", ground="white", *, height=32, width=96, size=22, blur=0.0, aside=0
    ) -> torch.Tensor:
        picture = Image.new("RGB", (width, height), PALETTE[ground])
        middle = (width / 2 + aside, height / 2)
        ImageDraw.Draw(picture).text(middle, word, PALETTE[ink], ImageFont.load_default(size=size), anchor="mm")
        if blur:
            picture = picture.filter(ImageFilter.GaussianBlur(blur))
        return torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1) / 255

    return draw
