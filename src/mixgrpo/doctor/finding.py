"""What a check says."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    about: str
    """What was looked at, in a word or two."""
    state: State
    """`problem`: the run would fail; `note`: it would work, but look; `ok`."""
    text: str
    remedy: str = ""
    """What to do, where there is something."""


def size(count: float) -> str:
    """Return a number of bytes in words: 31 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
