"""The network of ImageReward v1.0, built on transformers' BLIP and filled from the published checkpoint.

A picture goes through BLIP's vision tower (ViT-L/16 at 224 pixels); the prompt goes through BLIP's text encoder, a
BERT whose every layer also attends to the picture; a head without activations turns the state of the first token
into the score. The checkpoint has BLIP's own layout, so its keys are translated when it is loaded. Every weight of
the network is filled and every key of the checkpoint is used, except for those in `UNUSED`, which are named one by
one.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from mixgrpo.rewards.sources import Source, in_words

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores; the published code subtracts and divides by these."""

UNUSED = frozenset(
    {
        "blip.text_encoder.embeddings.position_ids",  # 0, 1, 2, ...: no weight, and transformers makes its own
        "blip.vision_proj.weight",  # the two projections of BLIP's contrastive loss, which the score does without
        "blip.vision_proj.bias",
        "blip.text_proj.weight",
        "blip.text_proj.bias",
    }
)
"""The keys of the checkpoint that no score depends on."""

_HEAD_WIDTH = 64  # of an attention head in all of BLIP's vision towers
_DEPTHS = {768: 12, 1024: 24}  # layers of the published towers by width: a checkpoint that lacks the last is no other

_TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "layer_norm_eps",
    "hidden_act",
)
"""What is read from `med_config.json`."""

_VISION_KEYS = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding", "patch_embed.proj"),
    ("encoder.layers", "blocks"),
    ("layer_norm", "norm"),
    ("self_attn.projection", "attn.proj"),
    ("self_attn.qkv", "attn.qkv"),
    ("post_layernorm", "norm"),
)
"""What transformers calls a part of the vision tower, and what BLIP does."""


class ImageRewardModel(nn.Module):
    """Scores pictures against their prompts, picture i against prompt i only."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig, head_widths: tuple[int, ...]) -> None:
        """Build the network with random weights; `head_widths` are the outputs of the head's five layers."""
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        widths = (text.hidden_size, *head_widths)
        layers = [nn.Linear(*pair) for pair in pairwise(widths)]
        # Where the identities are, the original has its dropouts: so the layers have the numbers of its keys.
        self.head = nn.Sequential(
            layers[0], nn.Identity(), layers[1], nn.Identity(), layers[2], nn.Identity(), layers[3], layers[4]
        )

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        return int(self.vision.config.image_size)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score normalised pixels [B, 3, S, S] against tokens [B, L]: float32 [B], about mean 0 and deviation 1."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids, attention_mask=attention_mask, encoder_hidden_states=seen).last_hidden_state
        return (self.head(read[:, 0].float()).squeeze(1) - MEAN) / STD

    def to_inference(self, device: torch.device, dtype: torch.dtype) -> "ImageRewardModel":
        """Move to a device, the two towers in `dtype`; the head stays in float32, as in the published code."""
        self.vision.to(dtype)  # type: ignore[arg-type]
        self.text.to(dtype)  # type: ignore[arg-type]
        return self.to(device).eval().requires_grad_(False)


def load_imagereward(source: Source, checkpoint: Path, med_config: Path) -> ImageRewardModel:
    """Build the network from the published checkpoint (.pt or .safetensors) and its `med_config.json`, of a source.

    The sizes of the vision tower and of the head are read off the checkpoint's weights. A .pt is read as weights only.

    Raises:
        ConfigError: A file cannot be read, or a key is missing, superfluous, or of the wrong shape; it is named.
    """
    weights = source.read_weights(checkpoint)

    def shape(key: str) -> torch.Size:
        if key not in weights:
            raise source.error(f"{checkpoint} is not the checkpoint of ImageReward v1.0: the key {key} is missing")
        return weights[key].shape

    vision = _vision_config(shape, weights)
    text = _text_config(source, med_config, vision.hidden_size)
    widths = tuple(shape(f"mlp.layers.{i}.weight")[0] for i in (0, 2, 4, 6, 7))
    model = ImageRewardModel(vision, text, widths)
    own = model.state_dict()
    sources = {key: original_key(key) for key in own}
    wanted = {source: own[key].shape for key, source in sources.items()}
    faults = {
        "missing": sorted(wanted.keys() - weights.keys()),
        "not known": sorted(weights.keys() - wanted.keys() - UNUSED),
        "of the wrong shape": sorted(
            f"{key} {list(weights[key].shape)} instead of {list(shape)}"
            for key, shape in wanted.items()
            if key in weights and weights[key].shape != shape
        ),
    }
    if any(faults.values()):
        raise source.error(
            f"{checkpoint} is not the checkpoint of ImageReward v1.0 that {med_config} describes. Keys that do not "
            f"fit: {in_words(faults)}"
        )
    model.load_state_dict({key: weights[source] for key, source in sources.items()})
    return model


def original_key(key: str) -> str:
    """Return what the published checkpoint calls a weight of `ImageRewardModel`."""
    tower, _, rest = key.partition(".")
    if tower == "head":
        return f"mlp.layers.{rest}"
    if tower == "text":  # BLIP's text encoder has the same names in transformers
        return f"blip.text_encoder.{rest}"
    for ours, theirs in _VISION_KEYS:
        rest = rest.replace(ours, theirs)
    return f"blip.visual_encoder.{rest}"


def _vision_config(shape: Callable[[str], torch.Size], weights: Iterable[str]) -> BlipVisionConfig:
    tower = "blip.visual_encoder"
    positions, width = shape(f"{tower}.pos_embed")[1:]
    patch = shape(f"{tower}.patch_embed.proj.weight")[-1]
    hidden = shape(f"{tower}.blocks.0.mlp.fc1.weight")[0]
    blocks = {int(found[1]) for key in weights if (found := re.match(rf"{re.escape(tower)}\.blocks\.(\d+)\.", key))}
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=_DEPTHS.get(width, max(blocks) + 1),
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        image_size=patch * math.isqrt(positions - 1),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _text_config(source: Source, file: Path, vision_width: int) -> BlipTextConfig:
    try:
        given: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise source.error(f"{file} cannot be read: {error}") from error
    missing = [name for name in _TEXT_SIZES if name not in given]
    if missing:
        raise source.error(f"{file} is not the med_config.json of ImageReward: it lacks {', '.join(missing)}")
    # "encoder_width" is not read: the published code, too, puts the width of its vision tower there.
    return BlipTextConfig(**{name: given[name] for name in _TEXT_SIZES}, encoder_hidden_size=vision_width)
