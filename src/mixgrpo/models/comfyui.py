"""An adapter as the single file that ComfyUI reads.

ComfyUI's loader (`comfy/lora.py`, `comfy/weight_adapter/lora.py`) looks for the keys of every layer that it knows by
name, `NAME.lora_up.weight` and `NAME.lora_down.weight`, and adds (NAME.alpha / rank) up @ down to the weight. Without
alpha the scale is 1, and metadata in the file's head, where diffusers keeps alpha, is not read: so alpha stands beside
every layer. For the families below a name is diffusers' own after `transformer.`; the loader knows what rows of which
fused weight it is (`comfy/utils.py`), or, for Qwen-Image, has its layers under the same names. Of Wan and HunyuanVideo
it knows the original checkpoint's names only.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_PARTS = {"lora_A": "lora_down", "lora_B": "lora_up"}

_BLOCKS = r"transformer_blocks\.\d+\."
_JOINT = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_STREAMS = rf"{_JOINT}|ff(_context)?\.net\.(0\.proj|2)|norm1(_context)?\.linear"
_LAST = r"norm_out\.linear|proj_out"
_OUTSIDE = rf"context_embedder|{_LAST}|time_text_embed\.{{}}_embedder\.linear_[12]"

FLUX_LAYERS = (
    rf"{_BLOCKS}({_STREAMS})|single_{_BLOCKS}(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)"
    rf"|x_embedder|{_OUTSIDE.format('(timestep|guidance|text)')}"
)
"""Layers of diffusers' FLUX.1 transformer that ComfyUI has a name for (its `flux_to_diffusers`)."""

SD3_LAYERS = rf"{_BLOCKS}({_STREAMS}|attn2\.(to_[qkv]|to_out\.0))|{_OUTSIDE.format('(timestep|text)')}"
"""The same for SD3 and SD3.5 (its `mmdit_to_diffusers`)."""

FLUX2_LAYERS = (
    rf"{_BLOCKS}({_JOINT}|ff(_context)?\.linear_(in|out))|single_{_BLOCKS}attn\.(to_qkv_mlp_proj|to_out)"
    rf"|x_embedder|context_embedder|{_LAST}"
)
"""The same for FLUX.2 (its `flux_to_diffusers`); modulation and embedders of time have none."""

QWEN_LAYERS = (
    rf"{_BLOCKS}({_JOINT}|(img|txt)_mlp\.net\.(0\.proj|2)|(img|txt)_mod\.1)"
    rf"|(img|txt)_in|{_LAST}|time_text_embed\.timestep_embedder\.linear_[12]"
)
"""The same for Qwen-Image: what ComfyUI's own model calls its layers."""

Z_IMAGE_LAYERS = (
    r"(layers\.\d+|(noise|context)_refiner\.[01])"
    r"\.(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123]|adaLN_modulation\.0)"
    r"|all_final_layer\.2-1\.(linear|adaLN_modulation\.1)|all_x_embedder\.2-1|cap_embedder\.1|t_embedder\.mlp\.[02]"
)
"""The same for Z-Image (its `z_image_to_diffusers`, for which there are two blocks of each refiner)."""


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
