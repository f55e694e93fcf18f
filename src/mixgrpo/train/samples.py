"""Images kept at every evaluation: the same prompts from the same noise, so that sheets can be laid side by side."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor


def save_image(image: Tensor, path: Path) -> None:
    """Write an image [3, H, W] in [0, 1] as PNG."""
    pixels = (image * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)


class SampleSheet:
    """The images of one evaluation in `samples/<iteration>/`, listed in `samples/index.json` once it is complete."""

    def __init__(self, run: Path, iteration: int, prompts: Sequence[str]) -> None:
        """Start a sheet of the first `len(prompts)` held-out prompts."""
        self._index = run / "samples" / "index.json"
        self._iteration = iteration
        self._prompts = list(prompts)
        self._folder = run / "samples" / f"{iteration:06d}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def add(self, rows: range, images: Tensor) -> None:
        """Keep those of `images` [b, 3, H, W] whose prompt is on the sheet."""
        for row, image in zip(rows, images, strict=True):
            if row < len(self._prompts):
                save_image(image, self._folder / f"{row:03d}.png")

    def close(self) -> None:
        """List the sheet; one of the same iteration, from before a resume, is replaced."""
        sheets: list[dict[str, Any]] = []
        if self._index.exists():
            sheets = json.loads(self._index.read_text(encoding="utf-8"))["sheets"]
        files = [f"{self._iteration:06d}/{row:03d}.png" for row in range(len(self._prompts))]
        sheets = [sheet for sheet in sheets if sheet["iteration"] < self._iteration]
        sheets.append({"iteration": self._iteration, "files": files})
        writing = self._index.with_suffix(".writing")
        writing.write_text(json.dumps({"prompts": self._prompts, "sheets": sheets}, indent=1), encoding="utf-8")
        os.replace(writing, self._index)
