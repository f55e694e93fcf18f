"""CLIP checkpoints in open_clip's layout as a `CLIPModel` of transformers: the same network, other names.

Three things are more than names: open_clip keeps the projections of queries, keys and values in one matrix, and its
two output projections are stored the other way round, for `x @ p` instead of `x @ p.T`. Everything else is equal,
including what is easily assumed wrong: plain GELU unless the config says `quick_gelu`, layer norms with 1e-5, and heads
that are 80 wide in the image tower of ViT-H-14, not 64. A text's embedding is taken at its end token, and attention
only looks back, so what comes after the end token does not matter.

A checkpoint must hold exactly what the architecture says, no tensor less or more.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.sources import in_words


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The numbers of a CLIP model with two transformers."""

    embed_dim: int
    """Width of the space that pictures and texts share."""
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    context_length: int = 77
    vocab_size: int = 49408
    activation: str = "gelu"
    """In transformers' words: `gelu`, or `quick_gelu` for OpenAI's approximation of it."""

    def config(self) -> CLIPConfig:
        """Return what transformers calls the same network."""
        towers = {
            name: {
                "hidden_size": width,
                "intermediate_size": 4 * width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "projection_dim": self.embed_dim,
                "hidden_act": self.activation,
                "layer_norm_eps": 1e-5,
            }
            for name, width, layers, heads in (
                ("vision", self.vision_width, self.vision_layers, self.vision_heads),
                ("text", self.text_width, self.text_layers, self.text_heads),
            )
        }
        end = self.vocab_size - 1  # open_clip looks for the highest number of a text, which is the end token
        text = {"vocab_size": self.vocab_size, "max_position_embeddings": self.context_length}
        return CLIPConfig(
            projection_dim=self.embed_dim,
            vision_config={**towers["vision"], "image_size": self.image_size, "patch_size": self.patch_size},
            text_config={**towers["text"], **text, "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": 0},
        )


VIT_H_14 = Architecture(
    embed_dim=1024,
    image_size=224,
    patch_size=14,
    vision_width=1280,
    vision_layers=32,
    vision_heads=16,
    text_width=1024,
    text_layers=24,
    text_heads=16,
)
"""open_clip's ViT-H-14, which HPSv2 and PickScore are trained from."""

_NAMES = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # sic: transformers' spelling
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def build_clip(state: Mapping[str, Tensor], architecture: Architecture, *, who: str) -> CLIPModel:
    """Return a `CLIPModel` in float32, in evaluation mode, with the weights of an open_clip state dict.

    `who` is how an error begins: whose weights these are, and where they lie.

    Raises:
        ConfigError: Weights are missing, of another shape than the architecture says, or left over.
    """
    config = architecture.config()
    weights, unknown = _rename(state)
    with torch.device("meta"):
        expected = CLIPModel(config).state_dict()
    problems = {
        "unknown": unknown + sorted(weights.keys() - expected.keys()),
        "missing": sorted(expected.keys() - weights.keys()),
        "of the wrong shape": [
            f"{name} ({list(tensor.shape)} instead of {list(expected[name].shape)})"
            for name, tensor in weights.items()
            if name in expected and tensor.shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        raise ConfigError(
            f"{who} is not a checkpoint of the architecture that was expected (image tower {architecture.vision_width} "
            f"wide with {architecture.vision_layers} layers, text tower {architecture.text_width} wide with "
            f"{architecture.text_layers}). Weights that do not fit, in transformers' names where they have one: "
            f"{in_words(problems)}"
        )
    return cast(Any, CLIPModel).from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)


def _rename(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights under transformers' names, and the names that open_clip does not have."""
    weights: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state.items():
        stem, _, kind = key.rpartition(".")
        block = _BLOCK.fullmatch(key)
        if key in _TRANSPOSED:
            weights[_TRANSPOSED[key]] = tensor.T.contiguous()
        elif key in _NAMES:
            weights[_NAMES[key]] = tensor
        elif block and (renamed := _rename_in_block(block, tensor)):
            weights.update(renamed)
        elif stem in _NAMES:
            weights[f"{_NAMES[stem]}.{kind}"] = tensor
        else:
            unknown.append(key)
    return weights, unknown


def _rename_in_block(block: re.Match[str], tensor: Tensor) -> dict[str, Tensor]:
    """Return the weights that one tensor of a transformer block becomes; none if open_clip has no such tensor."""
    tower, index, name = block.groups()
    prefix = f"{'vision' if tower else 'text'}_model.encoder.layers.{index}"
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = name.rpartition("_")[2]
        parts = zip("qkv", tensor.chunk(3), strict=False)  # a tensor that has no thirds shows up as missing weights
        return {f"{prefix}.self_attn.{part}_proj.{kind}": piece.contiguous() for part, piece in parts}
    stem, _, kind = name.rpartition(".")
    return {f"{prefix}.{_BLOCK_NAMES[stem]}.{kind}": tensor} if stem in _BLOCK_NAMES else {}
