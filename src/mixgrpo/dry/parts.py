"""The small parts that pipelines of several families have: autoencoder, text encoders, scheduler."""

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from mixgrpo.dry.known import Known
from mixgrpo.nano.text import CLIP_LENGTH, clip_vocabulary

CHANNELS = 4
"""Of the latents of all small models."""

_BLOCKS = 4
"""Of an autoencoder of which nothing is known: all published ones of image models halve a side three times."""


def shake(pipeline: Any) -> Any:
    """Move every weight, since diffusers starts last layers at zero, where nothing could be told apart."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, part in sorted(pipeline.components.items()):  # diffusers has them in another order in every process
            if isinstance(part, nn.Module):
                for parameter in part.parameters():
                    parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build(kind: Any, config: Mapping[str, Any]) -> Any:
    """Return a part of diffusers' class `kind`; entries that the class does not have are left out."""
    return kind.from_config(dict(config))


def scheduler(known: Known, usual: Any = FlowMatchEulerDiscreteScheduler, **defaults: Any) -> Any:
    """Return the scheduler that the model comes with; of class `usual` where nothing is known."""
    named = known.parts.get("scheduler", {}).get("_class_name")
    if named is not None:
        return build(getattr(diffusers, named), known.part("scheduler"))
    return build(usual, {**defaults, **known.part("scheduler")})


def image_vae(known: Known, kind: Any = AutoencoderKL, *, channels: int = CHANNELS, **defaults: Any) -> Any:
    """Return an autoencoder of images that makes as many pixels one cell as the model's."""
    config = known.part("vae")
    blocks = len(config.get("block_out_channels", range(_BLOCKS)))
    sizes = {
        "block_out_channels": (*((8,) * (blocks - 1)), 16),
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 4,
    }
    return build(kind, {**defaults, **config, **sizes})


def clip(width: int, *, projected: bool = False) -> Any:
    """Return the text tower of a CLIP model, which reads bytes."""
    words = clip_vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=words["<|startoftext|>"],
        eos_token_id=words["<|endoftext|>"],
        pad_token_id=words["<|endoftext|>"],
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def clip_tokenizer() -> Any:
    """Return the tokenizer of `clip`."""
    return CLIPTokenizer(clip_vocabulary(), [], model_max_length=CLIP_LENGTH)


def byte_tokenizer() -> Any:
    """Return the tokenizer of the small T5 and UMT5."""
    return ByT5Tokenizer(model_max_length=512)


def t5(width: int) -> Any:
    """Return a T5 encoder, which reads bytes."""
    return T5EncoderModel(
        T5Config(
            vocab_size=384, d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2, is_encoder_decoder=False
        )
    )
