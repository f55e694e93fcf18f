"""The English words of flux-nano, split once into what is for pretraining, for post-training and for judging.

The list is `words.txt` beside this file: the 3 to 6 letter words of BIP 39's English list (MIT licence, stated there).
The split looks only at the word itself, so a word never changes sides when the list grows.
"""

import hashlib
from functools import cache
from importlib import resources
from typing import Literal, get_args

Split = Literal["pretraining", "post-training", "held-out"]
"""Who may see a word: the pretraining recipe, the GRPO runs, or nobody but the judge."""

MIN_LETTERS = 3
MAX_LETTERS = 6

_FIRST_POST_TRAINING = 160
_FIRST_HELD_OUT = 208


def split_of(word: str) -> Split:
    """Return the split of an upper-case word: decided by the first byte of its SHA-256.

    Below 160 is pretraining (five words in eight), below 208 post-training, the rest held out. Random letter strings
    fall under the same rule, so that pretraining can leave out every string that is not its own.
    """
    first_byte = hashlib.sha256(word.encode("ascii")).digest()[0]
    if first_byte < _FIRST_POST_TRAINING:
        return "pretraining"
    return "post-training" if first_byte < _FIRST_HELD_OUT else "held-out"


@cache
def words(split: Split) -> tuple[str, ...]:
    """Return the upper-case words of one split, in alphabetical order."""
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(get_args(Split))}")
    text = resources.files("mixgrpo.nano").joinpath("words.txt").read_text(encoding="ascii")
    every = (line.upper() for line in text.splitlines() if line and not line.startswith("#"))
    return tuple(sorted(word for word in every if split_of(word) == split))


@cache
def reserved_words() -> frozenset[str]:
    """Return the words that no picture of pretraining may show: those for post-training and those held out."""
    return frozenset(words("post-training")) | frozenset(words("held-out"))
