"""The same prompts from the same noise, before and after: pictures, which may move, embedded in the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image, ImageSequence
from PIL.WebPImagePlugin import WebPImageFile

from mixgrpo.report.read import Run, Sheet
from mixgrpo.report.summary import Summary
from mixgrpo.report.text import count, is_share, value

MAX_SHEETS = 13
"""Evaluations whose pictures are embedded; of more, the first, the best, the last and some between are."""

MAX_PROMPTS = 24
"""Prompts whose pictures are embedded."""

SMALL = 256
"""Pictures of at most this many pixels a side are embedded as they are and enlarged with crisp pixels."""

LARGE = 448
"""Larger pictures are scaled down to this many pixels a side."""

MAX_CLIP_SHEETS, MAX_CLIP_PROMPTS = 4, 12
"""The same limits where the pictures are clips."""

MAX_FRAMES, LARGE_CLIP = 16, 288
"""Of a longer clip this many frames are embedded, so that it lasts as long; larger ones are scaled down to this."""

_MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture as the page embeds it."""

    uri: str
    width: int
    height: int

    @property
    def is_small(self) -> bool:
        """Whether it is shown larger than it is."""
        return max(self.width, self.height) <= SMALL


def embed(path: Path | None, *, largest: int = LARGE) -> Picture | None:
    """Return a picture of at most `largest` pixels a side as a data URI, or None where it is missing or no picture."""
    if path is None:
        return None
    try:
        with Image.open(path, formats=tuple(_MIME)) as image:
            frames = image.n_frames if isinstance(image, WebPImageFile) else 1
            if max(image.size) <= min(SMALL, largest) and frames <= MAX_FRAMES:
                return _picture(path.read_bytes(), _MIME[image.format or "PNG"], image.size)
            if frames > 1:
                return _shrunk_clip(image, frames, min(largest, LARGE_CLIP))
            image.thumbnail((largest, largest), reducing_gap=2.0)
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "WEBP", quality=85)
            return _picture(buffer.getvalue(), "image/webp", image.size)
    except (
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
    ):  # Pillow reports damaged PNG chunks as SyntaxError
        return None


def _shrunk_clip(image: Image.Image, count: int, largest: int) -> Picture:
    """Return a clip of at most MAX_FRAMES of its frames, evenly chosen, and as many seconds."""
    kept = min(count, MAX_FRAMES)
    chosen = {round(number * (count - 1) / (kept - 1)) for number in range(kept)}
    frames: list[Image.Image] = []
    milliseconds = 0
    for number, frame in enumerate(ImageSequence.Iterator(image)):
        frame.load()  # only then its duration is known
        milliseconds += frame.info["duration"]
        if number in chosen:
            frames.append(frame.convert("RGB"))
            frames[-1].thumbnail((largest, largest), reducing_gap=2.0)
    buffer = io.BytesIO()
    each = milliseconds // len(frames)
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=each, loop=0, quality=75)
    return _picture(buffer.getvalue(), "image/webp", frames[0].size)


def _picture(data: bytes, mime: str, size: tuple[int, int]) -> Picture:
    uri = f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
    return Picture(uri=uri, width=size[0], height=size[1])


def choose_sheets(sheets: Sequence[Sheet], best: int | None, *, most: int = MAX_SHEETS) -> list[Sheet]:
    """Return at most `most` sheets, the first, the best and the last among them."""
    if len(sheets) <= most:
        return list(sheets)
    gaps = most - 2
    chosen = {round(number * (len(sheets) - 1) / gaps) for number in range(gaps + 1)}
    chosen |= {number for number, sheet in enumerate(sheets) if sheet.iteration == best}
    return [sheets[number] for number in sorted(chosen)]


def gallery_section(run: Run, summary: Summary) -> str:
    """Return the pictures of all prompts, with a slider over the evaluations."""
    if not run.sheets or not run.prompts:
        return '<p class="empty-note">No pictures were kept.</p>'
    shown = summary.after.iteration if summary.after else None
    has_clips = any(picture.suffix == ".webp" for sheet in run.sheets for picture in sheet.pictures if picture)
    sheets = choose_sheets(run.sheets, shown, most=MAX_CLIP_SHEETS if has_clips else MAX_SHEETS)
    start = next((n for n, sheet in enumerate(sheets) if sheet.iteration == shown and n), len(sheets) - 1)
    prompts = run.prompts[: MAX_CLIP_PROMPTS if has_clips else MAX_PROMPTS]
    pairs = [_pair(sheets, number, prompt, start) for number, prompt in enumerate(prompts)]
    left_out: list[str] = []
    if len(sheets) < len(run.sheets):
        left_out.append(f"{len(sheets)} of {count(len(run.sheets), 'evaluation')}")
    if len(prompts) < len(run.prompts):
        left_out.append(f"{len(prompts)} of {count(len(run.prompts), 'prompt')}")
    note = f'<p class="quiet">To keep this page small, it shows {" and ".join(left_out)}.</p>' if left_out else ""
    slider = _slider(summary, sheets, start) if len(sheets) > 1 else '<p class="quiet">One evaluation so far.</p>'
    return f'<div class="gallery">{slider}<div class="pairs">{"".join(pairs)}</div></div>{note}'


def _slider(summary: Summary, sheets: Sequence[Sheet], start: int) -> str:
    labels = [sheet_label(summary, sheet) for sheet in sheets]
    marks = "".join(f'<option value="{number}"></option>' for number in range(len(sheets)))
    data = "".join(f"<li>{escape(label)}</li>" for label in labels)
    return (
        '<div class="scrub"><button type="button" class="play script" aria-label="Play the evaluations in order">'
        '<i></i></button><input class="script" type="range" aria-label="Evaluation shown as after" '
        f'min="0" max="{len(sheets) - 1}" value="{start}" list="evaluations">'
        f'<datalist id="evaluations">{marks}</datalist>'
        f'<output>{escape(labels[start])}</output><ol hidden class="labels">{data}</ol></div>'
    )


def sheet_label(summary: Summary, sheet: Sheet) -> str:
    """Say which evaluation a sheet is, and what was measured there."""
    words = "before training" if sheet.iteration == 0 else f"after {count(sheet.iteration, 'iteration')}"
    row = next((row for row in summary.evals if row.iteration == sheet.iteration), None)
    if row is None:
        return words
    if row is summary.best and sheet.iteration:
        words += ", the best"
    names = [figure.name for figure in summary.figures if figure.name in row.figures]
    figures = [f"{name} {value(row.figures[name], share=is_share(name))}" for name in names]
    return " · ".join([words, *figures])


def _pair(sheets: Sequence[Sheet], number: int, prompt: str, start: int) -> str:
    pictures = [embed(sheet.pictures[number]) if number < len(sheet.pictures) else None for sheet in sheets]
    size = next((picture for picture in pictures if picture is not None), None)
    # Pictures are shown side by side where two of them fit at twice their pixels, else one above the other.
    width = 160 if size is None or not size.is_small else max(130, min(2 * size.width, 240))
    before = f'<div class="shot"><span>before</span>{_image(pictures[0], f"{prompt}, before")}</div>'
    frames = "".join(
        _image(picture, f"{prompt}, after", index=index, hidden=index != start)
        for index, picture in enumerate(pictures)
        if index > 0
    )
    after = f'<div class="shot after"><span>after</span>{frames}</div>' if frames else ""
    return (
        f'<figure class="pair"><figcaption>{escape(prompt)}</figcaption>'
        f'<div class="shots" style="--least:{width}px">{before}{after}</div></figure>'
    )


def _image(picture: Picture | None, words: str, *, index: int = 0, hidden: bool = False) -> str:
    place = f' data-sheet="{index}"{" hidden" if hidden else ""}' if index else ""
    if picture is None:
        return f'<div class="gone"{place}>picture missing</div>'
    css = ' class="crisp"' if picture.is_small else ""
    return (
        f'<img{css}{place} src="{picture.uri}" width="{picture.width}" height="{picture.height}" alt="{escape(words)}">'
    )
