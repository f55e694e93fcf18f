"""The eight named colours of the flux-nano prompts, and which of them can be read on which.

The only place that says what "red" is: the renderer of the pretraining data and the colour reward both read it here.
"""

from itertools import permutations

PALETTE: dict[str, tuple[int, int, int]] = {
    "black": (16, 16, 16),
    "white": (244, 244, 244),
    "red": (204, 24, 36),
    "green": (20, 140, 60),
    "blue": (36, 72, 208),
    "yellow": (248, 208, 40),
    "purple": (124, 44, 168),
    "orange": (244, 128, 24),
}
"""Colour name -> sRGB, 0 to 255."""

MIN_CONTRAST = 2.0
"""Least contrast ratio (WCAG 2, 1 to 21) between ink and ground for a pair to be used."""


def luminance(rgb: tuple[int, int, int]) -> float:
    """Return the relative luminance (WCAG 2) of an sRGB colour, 0 for black and 1 for white."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(ink: str, ground: str) -> float:
    """Return the contrast ratio (WCAG 2) of two named colours, from 1 (the same) to 21."""
    darker, lighter = sorted((luminance(PALETTE[ink]), luminance(PALETTE[ground])))
    return (lighter + 0.05) / (darker + 0.05)


def is_legible(ink: str, ground: str) -> bool:
    """Say whether a word in `ink` stands out from `ground` well enough to be asked for."""
    return contrast(ink, ground) >= MIN_CONTRAST


def legible_pairs() -> tuple[tuple[str, str], ...]:
    """Return every (ink, ground) pair with enough contrast, in palette order."""
    return tuple(pair for pair in permutations(PALETTE, 2) if is_legible(*pair))
