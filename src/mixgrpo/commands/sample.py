"""`mixgrpo sample`: images or clips of prompts, by ODE sampling."""

import json
from collections.abc import Sequence
from pathlib import Path

from mixgrpo.commands.common import Parser, new_folder
from mixgrpo.commands.models import (
    Drawing,
    add_drawing_arguments,
    add_prompts_arguments,
    check_column,
    draw,
    drawing_memory,
    drawing_progress,
    read_drawing,
    settle_dtype,
    tell_left_out,
)
from mixgrpo.errors import ConfigError


def run(args: Sequence[str]) -> int:
    """Draw one image or clip per prompt into a folder."""
    found = make_parser().read(args)
    if (found.prompt is None) == (found.prompts is None):
        raise ConfigError("give either --prompt TEXT or --prompts FILE (see mixgrpo sample --help)")
    check_column(found)
    drawing = read_drawing(found, seed=0)
    output = new_folder(found.output)
    prompts = found.prompt or _read_prompts(found.prompts, found.column)
    from mixgrpo.train.samples import save_sample

    drawing = settle_dtype(drawing)
    batches = draw(drawing, prompts)
    output.mkdir(parents=True, exist_ok=True)
    files: list[str] = []
    with drawing_progress(len(prompts)) as tell, drawing_memory(drawing, "drawing"):
        for rows, images in batches:
            for row, image in zip(rows, images, strict=True):
                files.append(save_sample(image, output, f"{row:04d}"))
            tell(rows.stop)
    _write_index(output / "index.json", drawing, dict(zip(files, prompts, strict=True)))
    print(f"{len(prompts)} {'images' if drawing.model.num_frames == 1 else 'clips'} in {output}")
    return 0


def make_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "sample",
        "Draw one image or clip per prompt. What is not given is taken from the run, or from a preset for the model.",
    )
    add_drawing_arguments(parser)
    parser.add_argument("--prompt", metavar="TEXT", action="append", help="a prompt; may be given again")
    add_prompts_arguments(parser)
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the pictures, new or empty")
    return parser


def _read_prompts(source: str, column: str | None) -> Sequence[str]:
    from mixgrpo.data.prompts import read_prompts

    found = read_prompts(source, column=column or "prompt")
    tell_left_out(found)
    return found.prompts


def _write_index(path: Path, drawing: Drawing, prompts: dict[str, str]) -> None:
    """Write beside the images what they are of."""
    content = {
        "model": drawing.source.name,
        "dtype": drawing.model.dtype,
        "seed": drawing.seed,
        "num_steps": drawing.num_steps,
        "prompts": prompts,
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
