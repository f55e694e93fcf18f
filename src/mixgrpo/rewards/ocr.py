"""Whether the picture says the word that the prompt asks for, as a text recogniser reads it.

The recogniser is the PP-OCR network inside the `rapidocr` package, without its text detector: **the
whole picture is read as one line**. The network's file is run by onnxruntime itself, because rapidocr pads
every picture to 48 x 320, twice the work of a 32 x 96 picture, and sets up its own logging when it is
imported.

Pictures go through the network one by one. Batches are hardly faster on a CPU, while the matrix products of
one picture and of several differ in the last bits: so no score depends on which other pictures were scored
with it.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional

from mixgrpo.errors import ConfigError, MissingExtraError, RewardError
from mixgrpo.rewards.base import Scores
from mixgrpo.rewards.spelling import as_saved, score_spelling

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_HEIGHT = 48  # of the pictures that PP-OCR was trained on; the network takes no other
_STRIDE = 8  # pixels of width per letter position
_MARGIN = 16  # mid-grey columns on the right: without any, a last letter at the edge is misread now and then


class Recogniser(NamedTuple):
    """A text recognition network and its letters."""

    session: "InferenceSession"
    input_name: str
    letters: tuple[str, ...]
    """What each class of the network stands for; the first is "no letter here"."""


class OcrReward:
    """Reads every picture and compares with the first text in double quotes of its prompt.

    Values and the detail `exact` are those of `spelling.score_spelling`.
    """

    name = "ocr"

    def __init__(self, *, threads: int = 1) -> None:
        """Load the recogniser; `threads` pictures are read at the same time.

        Raises:
            ConfigError: `threads` is not a positive number.
            MissingExtraError: `rapidocr` or `onnxruntime` is not installed.
        """
        if threads < 1:
            raise ConfigError(f"the ocr reward's threads must be at least 1, got {threads}")
        load_recogniser()  # now rather than at the first picture, for its errors come before any training
        self.threads = threads

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Score images [B, 3, H, W] in [0, 1] against prompts: values and `exact`, [B], in [0, 1].

        Raises:
            RewardError: A prompt has no text in double quotes.
        """
        return score_spelling(read_words(images, threads=self.threads), images, prompts)


def read_words(images: Tensor, *, threads: int = 1) -> list[str]:
    """Read every picture of [B, 3, H, W] in [0, 1] as one line of text; "" where there is none.

    Returns the text as the network gives it, case and spaces kept.

    Raises:
        ConfigError: `threads` is not a positive number.
        MissingExtraError: `rapidocr` or `onnxruntime` is not installed.
    """
    if threads < 1:
        raise ConfigError(f"the ocr reward's threads must be at least 1, got {threads}")
    recogniser = load_recogniser()

    def read(picture: Tensor) -> str:
        likelihoods = np.asarray(recogniser.session.run(None, {recogniser.input_name: picture[None].numpy()})[0])
        return _decode(likelihoods[0].argmax(axis=1).tolist(), recogniser.letters)

    # whole pictures side by side: within one picture a second thread gains nothing
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(read, _prepare(images)))


@cache
def load_recogniser() -> Recogniser:
    """Load the recogniser that comes inside the `rapidocr` package, once.

    Raises:
        MissingExtraError: `rapidocr` or `onnxruntime` is not installed.
    """
    model = _model_file()
    if find_spec("onnxruntime") is None:
        raise MissingExtraError("the ocr reward", "onnxruntime", "ocr")
    import onnxruntime  # noqa: PLC0415 (comes with an extra)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # left alone it takes every core, away from the training
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads free their core
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    letters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    return Recogniser(session, session.get_inputs()[0].name, ("", *letters, " "))


def _model_file() -> str:
    """Return the recogniser's file as it was installed: models downloaded beside it later do not count."""
    try:
        installed = files("rapidocr") or []
    except PackageNotFoundError as error:
        raise MissingExtraError("the ocr reward", "rapidocr", "ocr") from error
    models = sorted(str(file.locate()) for file in installed if file.match("rapidocr/models/*rec*.onnx"))
    if not models:
        raise RewardError(
            "the ocr reward needs the recogniser inside the package 'rapidocr', but the installed version has none. "
            "Install another with: pip install --upgrade 'mixgrpo[ocr]'"
        )
    return models[0]


def _prepare(images: Tensor) -> Tensor:
    """Turn images [B, 3, H, W] in [0, 1] into the network's input: BGR in [-1, 1], [B, 3, 48, W']."""
    pixels = as_saved(images)
    height, width = pixels.shape[-2:]
    text_width = max(1, round(width * _HEIGHT / height))
    size = (_HEIGHT, text_width)
    # Smoothing matters only when shrinking, where every second stroke would be skipped without it.
    resized = functional.interpolate(pixels.flip(1), size=size, mode="bilinear", antialias=height > _HEIGHT)
    padded_width = math.ceil((text_width + _MARGIN) / _STRIDE) * _STRIDE
    return functional.pad(resized * 2 - 1, (0, padded_width - text_width)).contiguous()


def _decode(classes: Sequence[int], letters: Sequence[str]) -> str:
    """Read classes, one per position, as CTC does: a run of one class is one letter, class 0 is none."""
    previous = (0, *classes)
    return "".join(letters[now] for now, before in zip(classes, previous, strict=False) if now != before)
