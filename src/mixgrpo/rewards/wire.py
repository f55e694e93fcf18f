"""Protocol 1 between the reward `http` and a server: what travels, and how images are packed. See docs/rewards.md."""

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

VERSION = 1

MAX_PIXELS = 2**26
"""Pixels of all images of a request together, for what a small file unpacks to has no bound of its own."""

_BROKEN = (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises on files that are damaged or made to do damage."""

_SAVING = {
    "png": {"format": "PNG", "compress_level": 1},  # thrice as fast as 6, for a tenth more bytes
    "webp": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
}


class ScoreRequest(BaseModel):
    """The body of POST /score."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]
    reward: str = ""
    """Which reward is asked. May be left out where the server has a single one."""
    images: list[str] = Field(min_length=1)
    """PNG or WebP files, RGB, all of one size, in base64."""
    prompts: list[str]
    columns: list[dict[str, Any]] | None = None
    """Further columns of each prompt's line."""


class ScoreReply(BaseModel):
    """What POST /score answers: a number per image, null where there is none."""

    model_config = ConfigDict(strict=True)

    scores: list[float | None]
    details: dict[str, list[float | None]] = {}
    failures: list[str] = []
    """Why images have no score, for people to read."""


class Health(BaseModel):
    """What GET /health answers."""

    model_config = ConfigDict(strict=True)

    version: int
    rewards: list[str]
    server: str = ""


class SentPrompt(str):
    """A prompt that came with columns; `columns_of` reads them."""

    columns: Mapping[str, Any]

    def __new__(cls, text: str, columns: Mapping[str, Any]) -> "SentPrompt":
        """Join the text and its columns."""
        prompt = super().__new__(cls, text)
        prompt.columns = columns
        return prompt


class Fault(NamedTuple):
    """What is wrong with a request."""

    field: str
    message: str


def as_pixels(images: Tensor) -> Tensor:
    """Round images [B, 3, H, W] in [0, 1] to 8 bits per colour: uint8 on the CPU."""
    return (images.detach().nan_to_num().clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def pack_image(pixels: Tensor, image_format: str) -> str:
    """Turn uint8 [3, H, W] into a PNG or WebP file, lossless, in base64."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, **_SAVING[image_format])
    return base64.b64encode(file.getvalue()).decode("ascii")


def unpack_images(texts: Sequence[str]) -> "Tensor | Fault":
    """Return the images of a request, float32 [B, 3, H, W] in [0, 1], or what is wrong with one of them."""
    pictures: list[Image.Image] = []
    pixels = 0
    for index, text in enumerate(texts):
        field = f"images[{index}]"
        picture = _open(text)
        if isinstance(picture, str):
            return Fault(field, picture)
        pixels += picture.width * picture.height
        if pixels > MAX_PIXELS:
            return Fault(field, f"with this image the request has more than {MAX_PIXELS} pixels; send fewer at a time")
        if picture.size != (pictures or [picture])[0].size:
            sizes = [f"{size[0]} x {size[1]}" for size in (picture.size, pictures[0].size)]
            return Fault(field, f"is {sizes[0]} pixels, the first is {sizes[1]}; all images must be of one size")
        try:
            picture.load()
        except _BROKEN as error:
            return Fault(field, f"is broken: {error}")
        pictures.append(picture)
    stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return stacked.permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255


def _open(text: str) -> "Image.Image | str":
    """Read a file's head, before anything large is unpacked; returns what is wrong if it is no RGB image."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        return f"is not base64: {error}"
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "WEBP"))
    except _BROKEN as error:
        return f"cannot be read as a PNG or WebP file: {error}"
    return picture if picture.mode == "RGB" else f"has the colours {picture.mode}; send RGB, 8 bits per colour"
