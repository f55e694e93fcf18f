"""Draws upper-case words, one letter a cell, as the pretraining pictures of flux-nano.

Letters stand in cells of a fixed width, as tabular figures do: where a letter goes depends only on the word's length
and its place, which is what a five-million-parameter model can learn in half an hour of CPU.
Pictures are float32 RGB in [0, 1], 32 pixels high and 96 wide, channels last.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mixgrpo.errors import MissingExtraError
from mixgrpo.rewards.palette import PALETTE

HEIGHT, WIDTH = 32, 96
"""Pixels of one picture."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

FACES: dict[str, tuple[str, str]] = {
    "roboto": ("font_roboto", "Roboto-Bold.ttf"),
    "source-sans": ("font_source_sans_pro", "SourceSansPro-Bold.ttf"),
    "caladea": ("font_caladea", "Caladea-Bold.ttf"),
    "manrope": ("font_manrope", "Manrope-Bold.ttf"),
    "hanken-grotesk": ("font_hanken_grotesk", "HankenGrotesk-Bold.otf"),
    "fredoka": ("font_fredoka_one", "FredokaOne-Regular.ttf"),
}
"""Name -> (package, file). Roboto and Caladea are under Apache-2.0, the others under the SIL Open Font License 1.1."""

MAX_SHIFT_X, MAX_SHIFT_Y = 4, 3
"""How far a word may stand from the middle of the picture, in pixels: six letters still fit."""

_CELL_WIDTH = 14
_CELL_HEIGHT = 24
_BASELINE = 18  # row of the cell on which the letters stand: 3 free rows above a capital, 6 below for J and Q
_CAP_HEIGHT = 15
_MAX_GLYPH_WIDTH = 13  # M and W are squeezed to this; a letter never touches the next cell's
_SUPERSAMPLING = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Everything about a picture except the word: colours by name, face by name, shifts and blur in pixels."""

    ink: str
    ground: str
    face: str = "roboto"
    shift_x: int = 0
    shift_y: int = 0
    blur: float = 0.0


def is_installed(face: str) -> bool:
    """Say whether the package of a face is there."""
    return find_spec(FACES[face][0]) is not None


def _font_file(face: str) -> Path:
    package, file = FACES[face]
    if not is_installed(face):
        raise MissingExtraError("drawing the pretraining pictures", package.replace("_", "-"), "nano")
    return Path(str(resources.files(package).joinpath("files", file)))


def _font(face: str) -> ImageFont.FreeTypeFont:
    """Load a face at the size that makes its capitals `_CAP_HEIGHT` pixels high once scaled down."""
    file = str(_font_file(face))
    probe_size = 200.0
    probe = ImageFont.truetype(file, probe_size, layout_engine=ImageFont.Layout.BASIC)
    cap_height = -probe.getbbox("H", anchor="ls")[1]
    size = probe_size * _CAP_HEIGHT * _SUPERSAMPLING / cap_height
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


@cache
def glyphs(face: str) -> dict[str, NDArray[np.float32]]:
    """Return the coverage (0 to 1) of every letter of a face in its cell, [24, 14]."""
    font = _font(face)
    scale = _SUPERSAMPLING
    cells: dict[str, NDArray[np.float32]] = {}
    for letter in LETTERS:
        left, _, right, _ = (int(edge) for edge in font.getbbox(letter, anchor="ls"))
        glyph = Image.new("L", (right - left, _CELL_HEIGHT * scale), 0)
        ImageDraw.Draw(glyph).text((-left, _BASELINE * scale), letter, font=font, fill=255, anchor="ls")
        width = min(glyph.width, _MAX_GLYPH_WIDTH * scale)
        glyph = glyph.resize((width, glyph.height), Image.Resampling.BICUBIC)
        cell = Image.new("L", (_CELL_WIDTH * scale, _CELL_HEIGHT * scale), 0)
        cell.paste(glyph, ((cell.width - width) // 2, 0))
        cell = cell.resize((_CELL_WIDTH, _CELL_HEIGHT), Image.Resampling.BOX)
        cells[letter] = np.asarray(cell, dtype=np.float32) / np.float32(255)
    return cells


def draw_mask(word: str, look: Look) -> NDArray[np.float32]:
    """Draw where the ink goes: coverage from 0 to 1, [32, 96]."""
    cells = glyphs(look.face)
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    top = (HEIGHT - _CELL_HEIGHT) // 2 + look.shift_y
    left = (WIDTH - _CELL_WIDTH * len(word)) // 2 + look.shift_x
    for place, letter in enumerate(word):
        start = left + place * _CELL_WIDTH
        mask[top : top + _CELL_HEIGHT, start : start + _CELL_WIDTH] = cells[letter]
    if look.blur > 0:
        picture = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(look.blur))
        mask = np.asarray(picture, dtype=np.float32) / np.float32(255)
    return mask


def draw(word: str, look: Look) -> NDArray[np.float32]:
    """Draw a word: float32 RGB in [0, 1], [32, 96, 3]."""
    mask = draw_mask(word, look)[..., None]
    ink = np.array(PALETTE[look.ink], dtype=np.float32) / np.float32(255)
    ground = np.array(PALETTE[look.ground], dtype=np.float32) / np.float32(255)
    return np.asarray(ground + mask * (ink - ground), dtype=np.float32)
