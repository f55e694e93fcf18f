"""A tiny CLIP in open_clip's layout, its forward pass and tokeniser written out, and folders as users have them.

Written from the papers' formulas and from what the published files hold, without the code under test, but for the
random weights, which dry runs have too: what the rewards are compared with.
"""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mixgrpo.dry.clip import open_clip_state
from mixgrpo.rewards.open_clip import Architecture

PROMPTS = ["the cat in the rain", 'a red river, 2 boats & "one" cat\'s hat!', "the the " * 60]

EMBED_DIM, IMAGE_SIZE, PATCH_SIZE = 16, 28, 14
VISION = {"width": 32, "layers": 2, "heads": 4}
TEXT = {"width": 24, "layers": 3, "heads": 3}
CONTEXT = 77

_MERGES = [
    "t h",
    "th e</w>",
    "r i",
    "ri v",
    "e r</w>",
    "riv er</w>",
    "c a",
    "ca t</w>",
    "a i",
    "r ai",
    "rai n</w>",
    "' s</w>",
]


def _byte_letters() -> dict[int, str]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


LETTERS = _byte_letters()
_ORDERED = [LETTERS[byte] for byte in sorted(LETTERS, key=lambda byte: (ord(LETTERS[byte]) > 255, byte))]
VOCAB = [
    *_ORDERED,
    *(f"{letter}</w>" for letter in _ORDERED),
    *("".join(merge.split()) for merge in _MERGES),
    "<|startoftext|>",
    "<|endoftext|>",
]
START, END = len(VOCAB) - 2, len(VOCAB) - 1


NUMBERS = {
    "embed_dim": EMBED_DIM,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    **{f"vision_{name}": number for name, number in VISION.items()},
    **{f"text_{name}": number for name, number in TEXT.items()},
    "vocab_size": len(VOCAB),
}
"""The architecture, field by field."""


def write_tokenizer(folder: Path) -> Path:
    """Write the vocabulary as repositories of the hub have it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(VOCAB)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(_MERGES) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    fields = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "unk_token": "<|endoftext|>", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def reference_tokens(text: str) -> Tensor:
    """Cut a plain ASCII text as open_clip's tokeniser does: [1, 77], zeros behind the end token."""
    ranks = {tuple(merge.split()): rank for rank, merge in enumerate(_MERGES)}
    numbers = [START]
    for word in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+", " ".join(text.lower().split())):
        pieces = [LETTERS[byte] for byte in word.encode()]
        pieces[-1] += "</w>"
        while pairs := [pair for pair in pairwise(pieces) if pair in ranks]:
            first, second = min(pairs, key=ranks.__getitem__)
            merged: list[str] = []
            while pieces:
                both = len(pieces) > 1 and pieces[:2] == [first, second]
                merged.append(first + second if both else pieces[0])
                pieces = pieces[2 if both else 1 :]
            pieces = merged
        numbers += [VOCAB.index(piece) for piece in pieces]
    numbers = [*numbers, END][:CONTEXT]
    numbers[-1] = END
    return torch.tensor([numbers + [0] * (CONTEXT - len(numbers))])


def random_state(seed: int = 0) -> dict[str, Tensor]:
    """Return a checkpoint in open_clip's layout with weights large enough that every one of them matters."""
    return open_clip_state(Architecture(**NUMBERS), seed)


def reference_image_vectors(state: dict[str, Tensor], pixels: Tensor, activation: str = "gelu") -> Tensor:
    """Pass prepared pictures [B, 3, 28, 28] through the image tower: [B, 16], not normalised."""
    kernel = state["visual.conv1.weight"]
    x = functional.conv2d(pixels, kernel, stride=PATCH_SIZE).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = _norm(state, "visual.ln_pre", x + state["visual.positional_embedding"])
    x = _blocks(state, "visual.", x, heads=VISION["heads"], activation=activation, causal=False)
    return _norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"]


def reference_text_vectors(state: dict[str, Tensor], numbers: Tensor, activation: str = "gelu") -> Tensor:
    """Pass token numbers [B, 77] through the text tower: [B, 16], not normalised, taken at the highest number."""
    x = state["token_embedding.weight"][numbers] + state["positional_embedding"]
    x = _blocks(state, "", x, heads=TEXT["heads"], activation=activation, causal=True)
    x = _norm(state, "ln_final", x)
    return x[torch.arange(len(x)), numbers.argmax(dim=-1)] @ state["text_projection"]


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _blocks(state: dict[str, Tensor], prefix: str, x: Tensor, *, heads: int, activation: str, causal: bool) -> Tensor:
    length, width = x.shape[1:]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    for i in range((VISION if prefix else TEXT)["layers"]):
        weight = {
            key.removeprefix(block): tensor
            for block in [f"{prefix}transformer.resblocks.{i}."]
            for key, tensor in state.items()
            if key.startswith(block)
        }
        fused = _norm(weight, "ln_1", x) @ weight["attn.in_proj_weight"].T + weight["attn.in_proj_bias"]
        q, k, v = (fused[..., j * width : (j + 1) * width].unflatten(-1, (heads, -1)).transpose(1, 2) for j in range(3))
        logits = q @ k.transpose(-1, -2) / (width / heads) ** 0.5
        if causal:
            logits = logits.masked_fill(later, -torch.inf)
        mixed = (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        x = x + mixed @ weight["attn.out_proj.weight"].T + weight["attn.out_proj.bias"]
        inner = _norm(weight, "ln_2", x) @ weight["mlp.c_fc.weight"].T + weight["mlp.c_fc.bias"]
        if activation == "gelu":
            inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        else:
            inner = inner * torch.sigmoid(1.702 * inner)
        x = x + inner @ weight["mlp.c_proj.weight"].T + weight["mlp.c_proj.bias"]
    return x


def reference_padded(image: Tensor, size: int) -> np.ndarray:
    """Prepare a picture [3, H, W] in [0, 1] for HPSv2: float64 [3, size, size], not normalised.

    The longer side is scaled with the antialiased cubic filter of Keys (a = -1/2), the rest is black.
    """
    pixels = image.double().numpy()
    scale = size / max(pixels.shape[1:])
    height, width = (round(side * scale) for side in pixels.shape[1:])
    scaled = _cubic(pixels.shape[1], height) @ pixels @ _cubic(pixels.shape[2], width).T
    square = np.zeros((3, size, size))
    top, left = (size - height) // 2, (size - width) // 2
    square[:, top : top + height, left : left + width] = scaled
    return square


def _cubic(old: int, new: int) -> np.ndarray:
    """Return the matrix [new, old] that resamples a row of pixels."""
    step = old / new
    wide = max(step, 1.0)  # shrinking, the filter covers as many pixels as become one
    distance = np.abs((np.arange(old)[None] + 0.5 - (np.arange(new)[:, None] + 0.5) * step) / wide)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)
