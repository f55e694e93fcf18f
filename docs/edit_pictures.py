"""Make the picture of docs/edit.md: edits of pictures that flux-nano draws, each with the three methods.

python docs/edit_pictures.py docs/images/edit.png
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mixgrpo.cli import main as mixgrpo

SCALE, GAP, LABEL, TEXT = 2, 6, 22, 190
INK, GROUND, BOX = (40, 40, 40), (255, 255, 255), (150, 150, 150)
METHODS = ("ode", "sde", "cycle-sde")
EDITS = (
    ("RIVER", "red on white", "blue on white", "RIVER", None),
    ("HORSE", "white on purple", "black on yellow", "HORSE", None),
    ("RIVER", "red on white", "red on white", "RIDER", None),
    ("TASK", "white on green", "white on green", "MASK", None),
    ("RIVER", "red on white", "blue on white", "RIVER", (48, 0, 96, 32)),
    ("SALAD", "white on green", "white on green", "SALAD", (41, 0, 55, 32)),
)
"""Word, colours, new colours, new word, and the box that may change, if not all may."""


def main(output: Path) -> None:
    """Draw a row per edit: what was asked, the source, and what every method made of it."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [edit(Path(folder) / str(number), *entry) for number, entry in enumerate(EDITS)]
    width, height = (side * SCALE for side in rows[0][1][0].size)
    canvas = Image.new("RGB", (TEXT + (len(METHODS) + 1) * (width + GAP), LABEL + len(rows) * (height + GAP)), GROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for column, name in enumerate(("source", *METHODS)):
        draw.text((TEXT + column * (width + GAP), 3), name, fill=INK, font=font)
    for number, (text, images, box) in enumerate(rows):
        top = LABEL + number * (height + GAP)
        draw.multiline_text((GAP, top + height // 2), text, fill=INK, font=font, anchor="lm")
        for column, image in enumerate(images):
            left = TEXT + column * (width + GAP)
            canvas.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top))
            if box and column == 0:
                edges = [side * SCALE for side in box]
                draw.rectangle((left + edges[0], top, left + edges[2] - 1, top + edges[3] - 1), outline=BOX, width=2)
    output.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(output, optimize=True)


def edit(
    folder: Path, word: str, colours: str, new_colours: str, new_word: str, box: tuple[int, int, int, int] | None
) -> tuple[str, list[Image.Image], tuple[int, int, int, int] | None]:
    """Draw the source and edit it with every method, by the commands that a user would type."""
    prompt, target = f'the word "{word}" in {colours}', f'the word "{new_word}" in {new_colours}'
    run("sample", "flux-nano", "--prompt", prompt, "--seed", 1, "--output", folder / "source")
    files = [folder / "source" / "0000.png"]
    options = ["--to", target]
    if box:
        mask = Image.new("L", (96, 32))
        mask.paste(255, box)
        mask.save(folder / "mask.png")
        options += ["--mask", folder / "mask.png"]
    for method in METHODS:
        output = folder / method
        run(
            "edit",
            "flux-nano",
            "--image",
            files[0],
            "--prompt",
            prompt,
            *options,
            "--method",
            method,
            "--output",
            output,
        )
        files.append(output / "edited.png")
    text = f"{new_word}\nin {new_colours}" if target != prompt else f"{word}\ndrawn anew in the box"
    return text, [Image.open(file).copy() for file in files], box


def run(*words: object) -> None:
    """Run a command of the package."""
    if mixgrpo([str(word) for word in words]):
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
