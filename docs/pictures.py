"""Make the README's picture from a run: the first and the best sheet side by side, from the same noise.

python docs/pictures.py runs/NAME docs/images/flux-nano.png
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE, GAP, LABEL, COLUMNS = 2, 6, 22, 2
INK, GROUND = (40, 40, 40), (255, 255, 255)


def main(run: Path, output: Path) -> None:
    """Draw pairs of pictures, before and after, in columns."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    best = [row["iteration"] for row in rows if row["kind"] == "eval" and row["best"]][-1]
    sheets = {
        sheet["iteration"]: sheet["files"] for sheet in json.loads((run / "samples/index.json").read_text())["sheets"]
    }
    pairs = [
        [Image.open(run / "samples" / name) for name in files] for files in zip(sheets[0], sheets[best], strict=True)
    ]
    width, height = (side * SCALE for side in pairs[0][0].size)
    per_column = -(-len(pairs) // COLUMNS)
    column = 2 * width + GAP
    canvas = Image.new(
        "RGB", (COLUMNS * column + (COLUMNS + 1) * 3 * GAP, LABEL + per_column * (height + GAP) + GAP), GROUND
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for index, pair in enumerate(pairs):
        left = 3 * GAP + index // per_column * (column + 3 * GAP)
        top = LABEL + index % per_column * (height + GAP)
        for side, image in enumerate(pair):
            canvas.paste(image.resize((width, height), Image.Resampling.NEAREST), (left + side * (width + GAP), top))
        if index % per_column == 0:
            for side, text in enumerate(("before", f"after {best} iterations")):
                draw.text((left + side * (width + GAP), 3), text, fill=INK, font=font)
    output.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(output, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
