"""`mixgrpo edit`: change an image, by solving up and down (ODE), by noising it (SDE), or by Cycle-SDE."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from mixgrpo.commands.common import Parser, inside_fraction, new_folder
from mixgrpo.commands.models import (
    Drawing,
    add_model_arguments,
    drawing_memory,
    drawing_progress,
    load_models,
    read_drawing,
    settle_dtype,
    tell_cut,
)
from mixgrpo.commands.sources import find_source
from mixgrpo.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from mixgrpo.flow.edit import Method

METHODS = ("ode", "sde", "cycle-sde")
DEFAULT_STRENGTH = 0.95
FILE = "edited.png"


def run(args: Sequence[str]) -> int:
    """Edit one image into a folder."""
    found = make_parser().read(args)
    if found.to is None and found.mask is None:
        raise ConfigError("say what to change: --to TEXT, --mask FILE, or both (see mixgrpo edit --help)")
    image, mask, drawing = _read(found)
    output = new_folder(found.output)
    method = found.method or ("cycle-sde" if found.to is not None else "sde")
    to = found.prompt if found.to is None else found.to
    drawing = settle_dtype(drawing)
    edited = _edit(drawing, image, mask, prompt=found.prompt, to=to, method=method, strength=found.strength)
    from mixgrpo.train.samples import save_image

    output.mkdir(parents=True, exist_ok=True)
    save_image(edited, output / FILE)
    content = {
        "file": FILE,
        "image": found.image,
        "prompt": found.prompt,
        "to": to,
        "mask": found.mask,
        "method": method,
        "strength": found.strength,
        "model": found.model,
        "dtype": drawing.model.dtype,
        "num_steps": drawing.num_steps,
        "shift": drawing.shift,
        "seed": drawing.seed,
    }
    (output / "index.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(output / FILE)
    if method != "sde" and to == found.prompt:
        nearly = " nearly" if method == "ode" else ""
        print(f"The prompt is the same, so {method} only gives the image back{nearly}; --method sde draws it anew.")
    return 0


def make_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "edit",
        "Change an image: to what another prompt says, or inside a mask, or both. "
        "What is not given is taken from the run, or from a preset for the model.",
    )
    add_model_arguments(parser)
    parser.add_argument("--image", metavar="FILE", required=True, help="the image, of the size that the model draws")
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="what the image shows")
    parser.add_argument("--to", metavar="TEXT", help="what it shall show (default: the same, where a mask is given)")
    parser.add_argument("--mask", metavar="FILE", help="an image of the same size; only what is white there may change")
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="cycle-sde: retrace the image's own noise; sde: fresh noise; ode: no noise "
        "(default: cycle-sde, and sde for a mask without --to)",
    )
    parser.add_argument(
        "--strength",
        metavar="SIGMA",
        type=inside_fraction,
        default=DEFAULT_STRENGTH,
        help=f"noise level that the image is taken up to, above 0 and below 1 (default: {DEFAULT_STRENGTH})",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the result, new or empty")
    return parser


def _read(found: argparse.Namespace) -> tuple[Image.Image, Image.Image | None, Drawing]:
    """Read image and mask, and check that they have the size at which the model draws."""
    image = _open(found.image, "--image")
    if find_source(found.model).model() is None:  # then the image says what the size is
        found.width, found.height = found.width or image.width, found.height or image.height
    drawing = read_drawing(found, seed=0)
    if drawing.model.num_frames > 1:
        raise ConfigError(
            f"{drawing.source.name} draws clips of {drawing.model.num_frames} frames, and only single images can be "
            "edited: give --num-frames 1"
        )
    width, height = drawing.model.width, drawing.model.height
    if image.size != (width, height):
        raise ConfigError(
            f"the image {found.image} is {image.width} x {image.height} pixels, and {drawing.source.name} draws "
            f"{width} x {height} (width x height). Give an image of that size, or, if the model can draw others, "
            f"--width {image.width} --height {image.height}"
        )
    if found.mask is None:
        return image, None, drawing
    mask = _open(found.mask, "--mask").convert("L").point([255 * (value >= 128) for value in range(256)])
    if mask.size != image.size:
        raise ConfigError(
            f"the mask {found.mask} is {mask.width} x {mask.height} pixels, and the image is "
            f"{image.width} x {image.height}; they must have the same size"
        )
    if mask.getbbox() is None:
        raise ConfigError(f"the mask {found.mask} has no white, so nothing may change: white is what may")
    return image, mask, drawing


def _open(name: str, option: str) -> Image.Image:
    """Return the pixels of an image file, upright, in RGB."""
    path = Path(name).expanduser()
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{option} {name}: there is no such file") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{option} {name} cannot be read as an image: {error}") from error
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise ConfigError(f"{option} {name} has transparent pixels; give one without")
    return image.convert("RGB")


def _edit(
    drawing: Drawing,
    image: Image.Image,
    mask: Image.Image | None,
    *,
    prompt: str,
    to: str,
    method: "Method",
    strength: float,
) -> "Tensor":
    """Return the edited image, [3, H, W] in [0, 1]."""
    model, _ = load_models(drawing)
    tell_cut(model, [prompt] if to == prompt else [prompt, to], drawing.model.max_sequence_length)
    from mixgrpo.train.edit import edit_images, num_calls

    total, done = num_calls(method, drawing.num_steps), 0
    with drawing_progress(total) as tell, drawing_memory(drawing, "editing"):

        def on_call() -> None:
            nonlocal done
            done += 1
            tell(done)

        return edit_images(
            model,
            _pixels(image),
            [prompt],
            targets=[to],
            masks=None if mask is None else _pixels(mask) > 0.0,
            method=method,
            strength=strength,
            num_steps=drawing.num_steps,
            shift=drawing.shift,
            seed=drawing.seed,
            on_call=on_call,
        )[0]


def _pixels(image: Image.Image) -> "Tensor":
    """Return an image as [1, channels, H, W] in [0, 1]."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.array(image, dtype=np.float32)) / 255.0
    return pixels.reshape(image.height, image.width, -1).permute(2, 0, 1)[None]
