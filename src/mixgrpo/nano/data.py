"""The pretraining data: captioned pictures, as a pure function of (seed, stage, step).

Captions are as imperfect as those of the web: in a stated share of them one letter is not the picture's, in others
the colours are not. So the model learns the right picture of a caption and wrong ones beside it, which is what
post-training with a reward can undo.
"""

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from mixgrpo.nano.render import FACES, LETTERS, MAX_SHIFT_X, MAX_SHIFT_Y, Look, draw
from mixgrpo.nano.words import MAX_LETTERS, MIN_LETTERS, reserved_words, words
from mixgrpo.rewards.palette import legible_pairs

StreamName = Literal["vae", "text", "pool", "epoch", "flow", "flaw", "probe"]

LOOK_ALIKES: dict[str, str] = {
    "A": "HR", "B": "PE", "C": "GO", "D": "OB", "E": "FL", "F": "EP", "G": "CQ", "H": "NA", "I": "TL",
    "J": "UI", "K": "XR", "L": "IE", "M": "NW", "N": "MH", "O": "QC", "P": "RF", "Q": "OG", "R": "PK",
    "S": "ZB", "T": "YI", "U": "VJ", "V": "UY", "W": "MV", "X": "KY", "Y": "VX", "Z": "SE",
}  # fmt: skip
"""Letter of a picture -> the letters that stand in its place in a wrong caption."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionNoise:
    """How imperfect the captions are, as shares of all captions."""

    wrong_letter: float = 0.0
    """Letters of the caption are look-alikes of those in the picture."""
    wrong_letters: int = 1
    """How many letters are wrong in such a caption; a place may be drawn twice."""
    wrong_color: float = 0.0
    """Ink and ground of the caption are not those of the picture."""


CLEAN = CaptionNoise()
RANDOM_STRING_SHARE = 0.6
"""Share of random letter strings among the pictures; the rest are pretraining words."""
BLURRED_SHARE = 0.1
"""Share of the pictures that are out of focus, in training; the probes use none."""
MAX_BLUR = 1.2
"""Standard deviation in pixels of the strongest blur."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What one picture shows: a word, and how it looks."""

    word: str
    look: Look


def make_prompt(word: str, ink: str, ground: str) -> str:
    """Write the prompt for a word in two colours."""
    return f'the word "{word}" in {ink} on {ground}'


def make_rng(seed: int, stream: StreamName, step: int) -> Generator:
    """Return the generator of one step of one stream of random numbers."""
    return np.random.default_rng((seed, zlib.crc32(stream.encode()), step))


def make_torch_generator(seed: int, stream: StreamName, step: int) -> torch.Generator:
    """Return the torch generator of one step of one stream of random numbers."""
    return torch.Generator().manual_seed(int(make_rng(seed, stream, step).integers(2**62)))


def draw_word(rng: Generator) -> str:
    """Choose a word: a pretraining word, or a random string that is not a reserved word."""
    if rng.random() >= RANDOM_STRING_SHARE:
        return str(rng.choice(words("pretraining")))
    while True:
        length = int(rng.integers(MIN_LETTERS, MAX_LETTERS + 1))
        string = "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=length))
        if string not in reserved_words():
            return string


def make_picture(rng: Generator, *, blurred: float = 0.0, shifted: bool = True) -> Picture:
    """Choose what a picture shows; out of focus with probability `blurred`, in the middle unless `shifted`."""
    pairs, faces = legible_pairs(), tuple(FACES)
    word = draw_word(rng)
    ink, ground = pairs[rng.integers(len(pairs))]
    look = Look(
        ink=ink,
        ground=ground,
        face=faces[rng.integers(len(faces))],
        shift_x=int(rng.integers(-MAX_SHIFT_X, MAX_SHIFT_X + 1)) * shifted,
        shift_y=int(rng.integers(-MAX_SHIFT_Y, MAX_SHIFT_Y + 1)) * shifted,
        blur=float(rng.uniform(0.4, MAX_BLUR)) if rng.random() < blurred else 0.0,
    )
    return Picture(word=word, look=look)


def make_pictures(rng: Generator, size: int, *, blurred: float = 0.0, shifted: bool = True) -> list[Picture]:
    """Choose what `size` pictures show."""
    return [make_picture(rng, blurred=blurred, shifted=shifted) for _ in range(size)]


def draw_pictures(pictures: list[Picture]) -> Tensor:
    """Draw pictures: float32 in [0, 1], [batch, 3, 32, 96]."""
    drawn = np.stack([draw(picture.word, picture.look) for picture in pictures])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()


def misspell(word: str, rng: Generator) -> str:
    """Replace one letter by a look-alike, without ever writing a reserved word."""
    while True:
        place = int(rng.integers(len(word)))
        letter = str(rng.choice(list(LOOK_ALIKES[word[place]])))
        misspelt = word[:place] + letter + word[place + 1 :]
        if misspelt not in reserved_words():
            return misspelt


def make_caption(picture: Picture, rng: Generator, noise: CaptionNoise = CLEAN) -> str:
    """Write the caption of a picture, with the mistakes that `noise` asks for."""
    word = picture.word
    if rng.random() < noise.wrong_letter:
        for _ in range(noise.wrong_letters):
            word = misspell(word, rng)
    ink, ground = picture.look.ink, picture.look.ground
    if rng.random() < noise.wrong_color:
        pairs = legible_pairs()
        ink, ground = pairs[rng.integers(len(pairs))]
    return make_prompt(word, ink, ground)
