"""Clips in the report: short ones as they are, long ones thinned and scaled, and not too many of them."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageSequence
from PIL.WebPImagePlugin import WebPImageFile

from mixgrpo.report import write_report
from mixgrpo.report.gallery import embed
from report.page import Element, read_page

MakeRun = Callable[..., Path]


def make_clip(path: Path, *, frames: int, size: tuple[int, int], milliseconds: int = 60) -> Path:
    """Write a clip that gets brighter from black to white."""
    pictures = [Image.new("RGB", size, (round(255 * number / (frames - 1)),) * 3) for number in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, quality=90)
    return path


def opened(uri: str) -> WebPImageFile:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert isinstance(image, WebPImageFile)
    return image


def levels_and_durations(image: WebPImageFile) -> tuple[list[int], list[int]]:
    frames = list(ImageSequence.Iterator(image))
    center = (image.width // 2, image.height // 2)
    levels, durations = [], []
    for number in range(len(frames)):
        image.seek(number)
        levels.append(image.convert("L").getpixel(center))
        durations.append(image.info["duration"])
    return levels, durations


def test_a_short_small_clip_is_embedded_as_it_is(tmp_path: Path) -> None:
    file = make_clip(tmp_path / "a.webp", frames=5, size=(64, 48))
    picture = embed(file)
    assert picture is not None
    assert base64.b64decode(picture.uri.partition(",")[2]) == file.read_bytes()
    assert (picture.width, picture.height, picture.is_small) == (64, 48, True)


@pytest.mark.parametrize(
    ("frames", "size", "largest", "shown"),
    [(33, (640, 320), 448, (288, 144)), (5, (640, 320), 200, (200, 100)), (49, (64, 48), 448, (64, 48))],
    ids=["long and large", "large", "long"],
)
def test_a_long_or_large_clip_keeps_its_ends_its_seconds_and_its_shape(
    tmp_path: Path, frames: int, size: tuple[int, int], largest: int, shown: tuple[int, int]
) -> None:
    picture = embed(make_clip(tmp_path / "a.webp", frames=frames, size=size), largest=largest)
    assert picture is not None
    image = opened(picture.uri)
    assert image.size == (picture.width, picture.height) == shown
    assert image.n_frames == min(frames, 16)
    assert image.info["loop"] == 0
    levels, durations = levels_and_durations(image)
    assert (levels[0], levels[-1]) == (pytest.approx(0, abs=4), pytest.approx(255, abs=4))
    assert levels == sorted(levels)
    assert sum(durations) == pytest.approx(60 * frames, rel=0.03)


def test_a_damaged_clip_is_missing_and_not_an_error(tmp_path: Path) -> None:
    file = make_clip(tmp_path / "a.webp", frames=30, size=(320, 320))
    file.write_bytes(file.read_bytes()[:60])
    assert embed(file) is None


def _with_clips(run: Path) -> Path:
    """Give a run clips in place of its pictures."""
    index = json.loads((run / "samples" / "index.json").read_text())
    for sheet in index["sheets"]:
        for file in sheet["files"]:
            make_clip((run / "samples" / file).with_suffix(".webp"), frames=3, size=(16, 16))
        sheet["files"] = [file.replace(".png", ".webp") for file in sheet["files"]]
    (run / "samples" / "index.json").write_text(json.dumps(index))
    return run


def test_a_page_embeds_few_evaluations_and_prompts_of_clips_and_says_so(make_run: MakeRun) -> None:
    run = _with_clips(make_run(prompts_shown=[f"prompt {number}" for number in range(14)]))
    write_report(run)
    page: Element = read_page((run / "report.html").read_text())
    pairs = page.all("figure", "pair")
    assert len(pairs) == 12
    assert {len(pair.all("img")) for pair in pairs} == {3}  # the best is the last, else it would be one more
    assert all(image.attributes["src"].startswith("data:image/webp") for pair in pairs for image in pair.all("img"))
    assert "3 of 7 evaluations and 12 of 14 prompts" in page.section("pictures").text
