"""Pictures kept at every evaluation: the same prompts from the same noise, so that sheets can be laid side by side."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

FRAMES_PER_SECOND = 16
"""Of the files that clips are kept in, whatever the model counts in; it is Wan's own figure."""

_QUALITY, _METHOD = 80, 2
"""Of WebP: a lossless file is many times larger, and a slower method's hardly smaller."""


def save_image(image: Tensor, path: Path) -> None:
    """Write an image [3, H, W] in [0, 1] as PNG."""
    _picture(image).save(path)


def save_sample(sample: Tensor, folder: Path, name: str) -> str:
    """Write an image [3, H, W] as PNG, or a clip [F, 3, H, W] as animated WebP, which browsers play.

    Returns:
        The file's name: `name` with the right ending.
    """
    if sample.ndim == 3:
        save_image(sample, folder / f"{name}.png")
        return f"{name}.png"
    first, *others = (_picture(frame) for frame in sample)
    first.save(
        folder / f"{name}.webp",
        save_all=True,
        append_images=others,
        duration=round(1000 / FRAMES_PER_SECOND),
        loop=0,
        quality=_QUALITY,
        method=_METHOD,
    )
    return f"{name}.webp"


def _picture(image: Tensor) -> Image.Image:
    pixels = (image * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels)


class SampleSheet:
    """The pictures of one evaluation in `samples/<iteration>/`, listed in `samples/index.json` once it is complete."""

    def __init__(self, run: Path, iteration: int, prompts: Sequence[str]) -> None:
        """Start a sheet of the first `len(prompts)` held-out prompts."""
        self._index = run / "samples" / "index.json"
        self._iteration = iteration
        self._prompts = list(prompts)
        self._folder = run / "samples" / f"{iteration:06d}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[int, str] = {}

    def add(self, rows: range, images: Tensor) -> None:
        """Keep those of `images`, [b, 3, H, W] or clips [b, F, 3, H, W], whose prompt is on the sheet."""
        for row, image in zip(rows, images, strict=True):
            if row < len(self._prompts):
                self._files[row] = save_sample(image, self._folder, f"{row:03d}")

    def close(self) -> None:
        """List the sheet; one of the same iteration, from before a resume, is replaced."""
        sheets: list[dict[str, Any]] = []
        if self._index.exists():
            sheets = json.loads(self._index.read_text(encoding="utf-8"))["sheets"]
        files = [f"{self._folder.name}/{self._files[row]}" for row in range(len(self._prompts))]
        sheets = [sheet for sheet in sheets if sheet["iteration"] < self._iteration]
        sheets.append({"iteration": self._iteration, "files": files})
        writing = self._index.with_suffix(".writing")
        writing.write_text(json.dumps({"prompts": self._prompts, "sheets": sheets}, indent=1), encoding="utf-8")
        os.replace(writing, self._index)
