"""A model card's picture: held-out prompts before and after, from the same noise, as one PNG."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mixgrpo.report.read import Run

_CELL = 256
"""Pixels a side that pictures are scaled towards: small ones by whole factors, large ones down."""
_COLUMNS, _BANDS = 4, 2
_GAP, _BETWEEN_BANDS, _HEAD = 8, 28, 24
_TEXT = 15
_GROUND, _INK = (255, 255, 255), (70, 70, 70)


@dataclass(frozen=True, kw_only=True, slots=True)
class BeforeAfter:
    """Pictures of the same prompts by the starting model and by the exported one."""

    prompts: tuple[str, ...]
    before: tuple[Path, ...]
    after: tuple[Path, ...]
    iteration: int


def before_after(run: Run, iteration: int) -> BeforeAfter | None:
    """Return the pictures that a card shows, of at most eight prompts; None if a run has not kept both sheets."""
    sheets = {sheet.iteration: sheet.pictures for sheet in run.sheets}
    if iteration == 0 or 0 not in sheets or iteration not in sheets:
        return None
    rows = [
        (prompt, first, second)
        for prompt, first, second in zip(run.prompts, sheets[0], sheets[iteration], strict=False)
        if first is not None and second is not None
    ][: _COLUMNS * _BANDS]
    if not rows:
        return None
    prompts, before, after = zip(*rows, strict=True)
    return BeforeAfter(prompts=prompts, before=before, after=after, iteration=iteration)


def write_grid(pictures: BeforeAfter, file: Path) -> None:
    """Write the picture: in each column a prompt, above the starting model's, below the exported one's."""
    before, after = (_scaled(files) for files in (pictures.before, pictures.after))
    wide, high = before[0].size
    columns = min(_COLUMNS, len(before))
    bands = -(-len(before) // columns)
    band = 2 * (_HEAD + high) + _GAP
    size = (columns * (wide + _GAP) + _GAP, bands * (band + _BETWEEN_BANDS) - _BETWEEN_BANDS + 2 * _GAP)
    canvas = Image.new("RGB", size, _GROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=_TEXT)
    for number, pair in enumerate(zip(before, after, strict=True)):
        left = _GAP + number % columns * (wide + _GAP)
        top = _GAP + number // columns * (band + _BETWEEN_BANDS)
        for picture, label in zip(pair, (f"{number + 1}  before", f"{number + 1}  after"), strict=True):
            draw.text((left, top + 2), label, fill=_INK, font=font)
            canvas.paste(picture, (left, top + _HEAD))
            top += _HEAD + high + _GAP
    canvas.save(file)


def copy_single(pictures: BeforeAfter, folder: Path) -> list[str]:
    """Copy some of the exported model's pictures into `folder`/images, for the hub's gallery; returns their names."""
    (folder / "images").mkdir(exist_ok=True)
    names: list[str] = []
    for number, file in enumerate(pictures.after[:_COLUMNS], start=1):
        names.append(f"images/{number}{file.suffix}")
        shutil.copyfile(file, folder / names[-1])
    return names


def _scaled(files: Sequence[Path]) -> list[Image.Image]:
    pictures: list[Image.Image] = []
    for file in files:
        with Image.open(file) as opened:  # of a clip, this is the first frame
            picture = opened.convert("RGB")
        longest = max(picture.size)
        if longest * 2 <= _CELL:
            factor = _CELL // longest
            picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        picture.thumbnail((_CELL, _CELL))
        pictures.append(picture)
    return pictures
