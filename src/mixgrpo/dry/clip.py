"""Small random CLIP models as rewards load them: in open_clip's layout and in transformers'."""

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from mixgrpo.dry.parts import clip_tokenizer
from mixgrpo.nano.text import clip_vocabulary
from mixgrpo.rewards.aesthetic import HEAD
from mixgrpo.rewards.hpsv2 import CHECKPOINT
from mixgrpo.rewards.open_clip import Architecture
from mixgrpo.rewards.pixels import CLIP_MEAN, CLIP_STD

SMALL = Architecture(
    embed_dim=16,
    image_size=28,
    patch_size=14,
    vision_width=32,
    vision_layers=2,
    vision_heads=4,
    text_width=24,
    text_layers=2,
    text_heads=3,
    vocab_size=len(clip_vocabulary()),
)
"""The architecture of all small CLIP models."""

HEAD_WIDTHS = (1024, 128, 64, 16, 1)
"""Of LAION's aesthetic predictor."""


def open_clip_state(architecture: Architecture, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights in open_clip's layout, so large that every one of them matters."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    def tower(prefix: str, width: int, layers: int) -> dict[str, Tensor]:
        blocks: dict[str, Tensor] = {}
        for i in range(layers):
            block = f"{prefix}transformer.resblocks.{i}."
            for norm in ("ln_1", "ln_2"):
                blocks[f"{block}{norm}.weight"] = 1 + draw(width, scale=0.3)
                blocks[f"{block}{norm}.bias"] = draw(width, scale=0.3)
            for name, out, into in (
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            ):
                blocks[f"{block}{name}weight"] = draw(out, into, scale=into**-0.5)
                blocks[f"{block}{name}bias"] = draw(out, scale=0.3)
        return blocks

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + draw(width, scale=0.3), f"{name}.bias": draw(width, scale=0.3)}

    sizes = architecture
    vision, text, patch = sizes.vision_width, sizes.text_width, sizes.patch_size
    return {
        "positional_embedding": draw(sizes.context_length, text, scale=0.5),
        "text_projection": draw(text, sizes.embed_dim, scale=text**-0.5),
        "logit_scale": torch.tensor(4.5),
        "visual.class_embedding": draw(vision, scale=0.5),
        "visual.positional_embedding": draw((sizes.image_size // patch) ** 2 + 1, vision, scale=0.5),
        "visual.proj": draw(vision, sizes.embed_dim, scale=vision**-0.5),
        "visual.conv1.weight": draw(vision, 3, patch, patch, scale=0.05),
        **norm("visual.ln_pre", vision),
        **tower("visual.", vision, sizes.vision_layers),
        **norm("visual.ln_post", vision),
        **tower("", text, sizes.text_layers),
        "token_embedding.weight": draw(sizes.vocab_size, text, scale=0.5),
        **norm("ln_final", text),
    }


def open_clip_fields(architecture: Architecture) -> dict[str, object]:
    """Return the `model_cfg` that open_clip has for an architecture."""
    numbers = asdict(architecture)
    head = architecture.vision_width // architecture.vision_heads
    vision = {name: numbers[f"vision_{name}"] for name in ("width", "layers")}
    text = {name: numbers[f"text_{name}"] for name in ("width", "layers", "heads")}
    lengths = {name: numbers[name] for name in ("context_length", "vocab_size")}
    sides = {name: numbers[name] for name in ("image_size", "patch_size")}
    return {
        "embed_dim": architecture.embed_dim,
        "quick_gelu": architecture.activation == "quick_gelu",
        "vision_cfg": {**vision, **sides, "head_width": head},
        "text_cfg": {**text, **lengths},
    }


def write_hps(folder: Path, architecture: Architecture = SMALL, seed: int = 1) -> Path:
    """Write HPSv2's checkpoint as it is published, in half precision, and beside it the architecture it has."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.half() for key, tensor in open_clip_state(architecture, seed).items()}
    torch.save({"epoch": 1, "name": "hps", "state_dict": state}, folder / CHECKPOINT)
    fields = json.dumps(open_clip_fields(architecture))
    (folder / CHECKPOINT).with_suffix(".json").write_text(fields, encoding="utf-8")
    return folder


def write_open_clip(folder: Path, architecture: Architecture = SMALL, seed: int = 2) -> Path:
    """Write a CLIP as open_clip publishes it, prepared as Apple's is."""
    folder.mkdir(parents=True, exist_ok=True)
    prepare = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": open_clip_fields(architecture), "preprocess_cfg": prepare}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save(open_clip_state(architecture, seed), folder / "open_clip_pytorch_model.bin")
    return folder


def make_clip(config: CLIPConfig) -> CLIPModel:
    """Return a CLIP of transformers whose weights all matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        model.logit_scale.fill_(4.5)
    return model


def write_preprocessor(folder: Path, side: int, /, **fields: object) -> None:
    """Write how transformers prepares pictures for a CLIP that takes them `side` pixels wide."""
    known = {"size": side, "crop_size": side, "resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    (folder / "preprocessor_config.json").write_text(json.dumps({**known, **fields}), encoding="utf-8")


def write_clip(folder: Path) -> Path:
    """Write a CLIP as transformers saves it, with tokenizer and preprocessor_config.json."""
    make_clip(SMALL.config()).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    write_preprocessor(folder, SMALL.image_size)
    return folder


def write_tokenizer(folder: Path) -> Path:
    """Write the tokenizer of the small CLIP models."""
    clip_tokenizer().save_pretrained(folder)
    return folder


def write_head(folder: Path, width: int = SMALL.embed_dim) -> Path:
    """Write LAION's aesthetic head, for vectors of `width` numbers, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(4)
    state: dict[str, Tensor] = {}
    for place, (wide, thin) in zip((0, 2, 4, 6, 7), pairwise((width, *HEAD_WIDTHS)), strict=True):
        state[f"layers.{place}.weight"] = torch.randn(thin, wide, generator=generator) / wide**0.5
        state[f"layers.{place}.bias"] = torch.randn(thin, generator=generator)
    torch.save(state, folder / HEAD)
    return folder / HEAD
