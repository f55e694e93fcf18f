"""Compare ways to edit on flux-nano: change the ink, or one letter.

    python benchmarks/editing.py --num 48 --json editing.json
    python benchmarks/editing.py --rendered

The pictures are the first of the held-out prompts that the model draws right, word and colours; or, `--rendered`, the
first of them set in type, in six faces, which the model has not drawn. Each is given another ink, or another letter at
one place, without and with a mask around that letter. Judged by the OCR and colour rewards
under the new prompt, and by what else moved: how much the ink's coverage (0 to 1 for every pixel, whatever the two
colours) differs from the source's, outside the cell of the changed letter.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mixgrpo.commands.common import quiet_libraries
from mixgrpo.data.prompts import load_prompts
from mixgrpo.flow.edit import TRUE_REVERSE_ETA
from mixgrpo.flow.plan import ode_plan
from mixgrpo.models import FlowModel, load_model
from mixgrpo.nano.data import Picture, draw_pictures, make_prompt
from mixgrpo.nano.render import _CELL_WIDTH, FACES, HEIGHT, LETTERS, WIDTH, Look
from mixgrpo.rewards.colors import ColorReward, asked_colors
from mixgrpo.rewards.ocr import OcrReward
from mixgrpo.rewards.palette import PALETTE, legible_pairs
from mixgrpo.rewards.spelling import asked_word
from mixgrpo.train.edit import edit_images
from mixgrpo.train.inference import draw_batches


class Task(NamedTuple):
    target: str
    columns: slice
    """Columns of the changed letter's cell; none where the ink changes."""


class Variant(NamedTuple):
    edit: str
    method: Any
    strength: float
    steps: int = 8
    eta: float = TRUE_REVERSE_ETA


VARIANTS = [
    *(
        Variant(*names)
        for names in product(("ink", "letter"), ("ode", "sde", "cycle-sde"), (0.6, 0.8, 0.9, 0.95, 0.98))
    ),
    *(Variant(*names) for names in product(("letter, masked",), ("ode", "sde", "cycle-sde"), (0.8, 0.95))),
    *(Variant(*names) for names in product(("ink", "letter"), ("ode", "cycle-sde"), (0.95,), (4, 16))),
    *(Variant(*names) for names in product(("ink", "letter"), ("cycle-sde",), (0.95,), (8,), (0.0, 0.7))),
]


def new_ink(index: int, prompt: str) -> Task:
    ink, ground = asked_colors(prompt)
    inks = [other for other, on in legible_pairs() if on == ground and other != ink]
    return Task(make_prompt(asked_word(prompt), inks[7 * index % len(inks)], ground), slice(0, 0))


def new_letter(index: int, prompt: str) -> Task:
    word, place = asked_word(prompt), (5 * index + 1) % len(asked_word(prompt))
    letter = LETTERS[(LETTERS.index(word[place]) + 3 + 11 * index % 20) % len(LETTERS)]
    left = (WIDTH - _CELL_WIDTH * len(word)) // 2 + _CELL_WIDTH * place
    new = word[:place] + letter + word[place + 1 :]
    return Task(make_prompt(new, *asked_colors(prompt)), slice(left, left + _CELL_WIDTH))


def drawn_right(model: FlowModel, num: int) -> tuple[Tensor, list[str]]:
    """Draw held-out prompts until `num` pictures are right; return those, as a PNG would hold them."""
    images, prompts, candidates = [], [], load_prompts("nano-heldout")
    for rows, batch in draw_batches(model, candidates, plan=ode_plan(8, 3.0), seed=0, batch=32):
        texts = [candidates[row] for row in rows]
        right = OcrReward()(batch, texts).details["exact"] * ColorReward()(batch, texts).details["exact"]
        for index in right.nonzero().flatten().tolist():
            images.append((batch[index] * 255.0).round() / 255.0)
            prompts.append(texts[index])
        if len(images) >= num:
            break
    return torch.stack(images[:num]), prompts[:num]


def rendered(num: int) -> tuple[Tensor, list[str]]:
    prompts, faces = list[str](load_prompts("nano-heldout")[:num]), tuple(FACES)
    pictures = []
    for index, prompt in enumerate(prompts):
        ink, ground = asked_colors(prompt)
        pictures.append(
            Picture(word=asked_word(prompt), look=Look(ink=ink, ground=ground, face=faces[index % len(faces)]))
        )
    return (draw_pictures(pictures) * 255.0).round() / 255.0, prompts


def coverage(image: Tensor, prompt: str) -> Tensor:
    """Return how much of every pixel is ink, [H, W]."""
    ink, ground = (torch.tensor(PALETTE[name]) / 255.0 for name in asked_colors(prompt))
    line = ink - ground
    return ((image.permute(1, 2, 0) - ground) @ line / line.dot(line)).clamp(0.0, 1.0)


def moved(before: tuple[Tensor, str], after: tuple[Tensor, str], columns: slice) -> float:
    difference = (coverage(*after) - coverage(*before)).abs()
    outside = torch.ones(WIDTH, dtype=torch.bool)
    outside[columns] = False
    return difference[:, outside].mean().item()


def measure(model: FlowModel, images: Tensor, prompts: list[str], variant: Variant) -> dict[str, float]:
    make = new_ink if variant.edit == "ink" else new_letter
    tasks = [make(index, prompt) for index, prompt in enumerate(prompts)]
    targets = [task.target for task in tasks]
    masks = None
    if variant.edit == "letter, masked":
        masks = torch.zeros(len(images), 1, HEIGHT, WIDTH, dtype=torch.bool)
        for mask, task in zip(masks, tasks, strict=True):
            mask[..., task.columns] = True
    started = time.perf_counter()
    edited = edit_images(
        model,
        images,
        prompts,
        targets=targets,
        masks=masks,
        method=variant.method,
        strength=variant.strength,
        num_steps=variant.steps,
        shift=3.0,
        seed=0,
        eta=variant.eta,
    )
    seconds = time.perf_counter() - started
    words, colors = OcrReward()(edited, targets), ColorReward()(edited, targets)
    pairs = zip(zip(images, prompts, strict=True), zip(edited, targets, strict=True), tasks, strict=True)
    return {
        "exact": words.details["exact"].mean().item(),
        "ocr": words.values.mean().item(),
        "colors_exact": colors.details["exact"].mean().item(),
        "colors": colors.values.mean().item(),
        "moved": sum(moved(before, after, task.columns) for before, after, task in pairs) / len(images),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=48, help="pictures to edit (default: 48)")
    parser.add_argument("--rendered", action="store_true", help="edit pictures that the model has not drawn")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    quiet_libraries()
    console = Console()
    model = load_model("flux-nano", height=HEIGHT, width=WIDTH, max_sequence_length=48)
    images, prompts = rendered(arguments.num) if arguments.rendered else drawn_right(model, arguments.num)
    table = Table(
        "edit", "method", "strength", "steps", "eta", "word right", "OCR", "colours right", "colours", "moved"
    )
    rows = []
    for variant in VARIANTS:
        figures = measure(model, images, prompts, variant)
        rows.append(variant._asdict() | figures)
        table.add_row(
            variant.edit,
            variant.method,
            f"{variant.strength:g}",
            str(variant.steps),
            f"{variant.eta:.3g}",
            *(
                f"{figures[name]:.1%}" if "exact" in name else f"{figures[name]:.3f}"
                for name in figures
                if name != "seconds"
            ),
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    console.print(table)


if __name__ == "__main__":
    main()
