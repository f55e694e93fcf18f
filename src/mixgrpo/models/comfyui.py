"""An adapter as the single file that ComfyUI reads.

ComfyUI's loader (`comfy/lora.py`, `comfy/weight_adapter/lora.py`) looks for the keys of every layer that it knows by
name, `NAME.lora_up.weight` and `NAME.lora_down.weight`, and adds (NAME.alpha / rank) up @ down to the weight. Without
alpha the scale is 1, and metadata in the file's head, where diffusers keeps alpha, is not read: so alpha stands beside
every layer. For FLUX.1 and SD3 a name is diffusers' own after `transformer.`; the loader knows what rows of which fused
weight it is.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_PARTS = {"lora_A": "lora_down", "lora_B": "lora_up"}

_BLOCKS = r"transformer_blocks\.\d+\."
_STREAMS = (
    r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2)|norm1(_context)?\.linear"
)
_OUTSIDE = r"context_embedder|norm_out\.linear|proj_out|time_text_embed\.{}_embedder\.linear_[12]"

FLUX_LAYERS = (
    rf"{_BLOCKS}({_STREAMS})|single_{_BLOCKS}(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)"
    rf"|x_embedder|{_OUTSIDE.format('(timestep|guidance|text)')}"
)
"""Layers of diffusers' FLUX.1 transformer that ComfyUI has a name for (its `flux_to_diffusers`)."""

SD3_LAYERS = rf"{_BLOCKS}({_STREAMS}|attn2\.(to_[qkv]|to_out\.0))|{_OUTSIDE.format('(timestep|text)')}"
"""The same for SD3 and SD3.5 (its `mmdit_to_diffusers`)."""


def unknown_layers(weights: Mapping[str, Tensor], known: str) -> list[str]:
    """Return the layers of an adapter that no name in the pattern `known` fits."""
    return sorted({layer for layer, _ in map(_split, weights) if not re.fullmatch(known, layer)})


def comfyui_tensors(weights: Mapping[str, Tensor], *, alpha: float) -> dict[str, Tensor]:
    """Return what ComfyUI is to read for peft's `weights`, `LAYER.lora_A.weight` and `LAYER.lora_B.weight`."""
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        layer, part = _split(name)
        tensors[f"transformer.{layer}.{_PARTS[part]}.weight"] = weight.detach().cpu().contiguous()
        tensors[f"transformer.{layer}.alpha"] = torch.tensor(float(alpha))
    return tensors


def _split(name: str) -> tuple[str, str]:
    layer, _, part = name.removesuffix(".weight").rpartition(".")
    return layer, part
