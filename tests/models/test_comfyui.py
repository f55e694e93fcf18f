"""The file for ComfyUI, read by its rules as a reader of its own has them, gives the weights that diffusers merges.

The reader is written from what ComfyUI's loader does: it walks over the names it knows, takes `NAME.lora_up.weight`,
`NAME.lora_down.weight` and `NAME.alpha`, and adds (alpha / rank) up @ down, or up @ down where there is no alpha, to
some rows of a weight of the original checkpoint's layout, in which queries, keys and values are one.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import load_file
from torch import Tensor

from mixgrpo.config.sections import LoraConfig
from mixgrpo.models import load_model
from mixgrpo.models.pipeline import PipelineModel
from mixgrpo.train.policy import Policy
from tests.models.families import TINY, save

ALL_LAYERS = {
    "flux-dev": ("attn.to_q", "proj_mlp", "proj_out", "norm.linear", "norm1.linear", "norm_out.linear", "x_embedder"),
    "sd3.5-medium": ("attn2.to_k", "attn2.to_out.0", "norm1.linear", "ff.net.2", "proj_out", "norm_out.linear"),
    "flux2-dev": ("x_embedder", "context_embedder", "proj_out", "norm_out.linear"),
    "flux2-klein-base": ("x_embedder", "context_embedder", "proj_out", "norm_out.linear"),
    "qwen-image": ("img_mod.1", "txt_mod.1", "img_in", "txt_in", "proj_out", "norm_out.linear", "linear_1", "linear_2"),
    "z-image": (
        "0.adaLN_modulation.0",
        "adaLN_modulation.1",
        "all_x_embedder.2-1",
        "2-1.linear",
        "cap_embedder.1",
        "mlp.0",
        "mlp.2",
    ),
}
"""Besides a family's own targets: layers that a user may name."""


def _flux_fused(weights: dict[str, Tensor]) -> list[tuple[str, list[str]]]:
    """Return (name in the original checkpoint, diffusers' layers of its rows) of every fused or renamed weight."""
    fused: list[tuple[str, list[str]]] = []
    if "transformer_blocks.0.attn.to_q" in weights:
        block, to = "transformer_blocks.0", "double_blocks.0"
        fused.append((f"{to}.img_attn.qkv", [f"{block}.attn.to_{c}" for c in "qkv"]))
        fused.append((f"{to}.txt_attn.qkv", [f"{block}.attn.add_{c}_proj" for c in "qkv"]))
        for name, original in {
            "attn.to_out.0": "img_attn.proj",
            "attn.to_add_out": "txt_attn.proj",
            "ff.net.0.proj": "img_mlp.0",
            "ff.net.2": "img_mlp.2",
            "ff_context.net.0.proj": "txt_mlp.0",
            "ff_context.net.2": "txt_mlp.2",
            "norm1.linear": "img_mod.lin",
            "norm1_context.linear": "txt_mod.lin",
        }.items():
            fused.append((f"{to}.{original}", [f"{block}.{name}"]))
    block, to = "single_transformer_blocks.0", "single_blocks.0"
    fused.append((f"{to}.linear1", [*(f"{block}.attn.to_{c}" for c in "qkv"), f"{block}.proj_mlp"]))
    fused.append((f"{to}.linear2", [f"{block}.proj_out"]))
    fused.append((f"{to}.modulation.lin", [f"{block}.norm.linear"]))
    fused.append(("img_in", ["x_embedder"]))
    fused.append(("final_layer.linear", ["proj_out"]))
    fused.append(("final_layer.adaLN_modulation.1", ["norm_out.linear"]))
    return fused


def _sd3_fused(weights: dict[str, Tensor]) -> list[tuple[str, list[str]]]:
    fused: list[tuple[str, list[str]]] = []
    for number in (0, 1):
        block, to = f"transformer_blocks.{number}", f"joint_blocks.{number}"
        fused.append((f"{to}.x_block.attn.qkv", [f"{block}.attn.to_{c}" for c in "qkv"]))
        fused.append((f"{to}.x_block.attn2.qkv", [f"{block}.attn2.to_{c}" for c in "qkv"]))
        fused.append((f"{to}.context_block.attn.qkv", [f"{block}.attn.add_{c}_proj" for c in "qkv"]))
        for name, original in {
            "attn.to_out.0": "x_block.attn.proj",
            "attn2.to_out.0": "x_block.attn2.proj",
            "attn.to_add_out": "context_block.attn.proj",
            "ff.net.0.proj": "x_block.mlp.fc1",
            "ff.net.2": "x_block.mlp.fc2",
            "ff_context.net.0.proj": "context_block.mlp.fc1",
            "ff_context.net.2": "context_block.mlp.fc2",
            "norm1.linear": "x_block.adaLN_modulation.1",
        }.items():
            fused.append((f"{to}.{original}", [f"{block}.{name}"]))
    fused.append(("final_layer.linear", ["proj_out"]))
    fused.append(("final_layer.adaLN_modulation.1", ["norm_out.linear"]))
    return [(name, layers) for name, layers in fused if all(layer in weights for layer in layers)]


def _flux2_fused(weights: dict[str, Tensor]) -> list[tuple[str, list[str]]]:
    fused: list[tuple[str, list[str]]] = []
    block, to = "transformer_blocks.0", "double_blocks.0"
    for stream, names, out, feed in (
        ("img", [f"to_{c}" for c in "qkv"], "to_out.0", "ff"),
        ("txt", [f"add_{c}_proj" for c in "qkv"], "to_add_out", "ff_context"),
    ):
        fused.append((f"{to}.{stream}_attn.qkv", [f"{block}.attn.{name}" for name in names]))
        fused.append((f"{to}.{stream}_attn.proj", [f"{block}.attn.{out}"]))
        fused.append((f"{to}.{stream}_mlp.0", [f"{block}.{feed}.linear_in"]))
        fused.append((f"{to}.{stream}_mlp.2", [f"{block}.{feed}.linear_out"]))
    for number in (0, 1):
        block, to = f"single_transformer_blocks.{number}", f"single_blocks.{number}"
        fused.append((f"{to}.linear1", [f"{block}.attn.to_qkv_mlp_proj"]))
        fused.append((f"{to}.linear2", [f"{block}.attn.to_out"]))
    fused += [("img_in", ["x_embedder"]), ("txt_in", ["context_embedder"]), ("final_layer.linear", ["proj_out"])]
    fused.append(("final_layer.adaLN_modulation.1", ["norm_out.linear"]))
    return [(name, layers) for name, layers in fused if all(layer in weights for layer in layers)]


def _qwen_fused(weights: dict[str, Tensor]) -> list[tuple[str, list[str]]]:
    """The checkpoint that ComfyUI reads is diffusers' own."""
    names = ["img_in", "txt_in", "proj_out", "norm_out.linear"]
    names += ["time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2"]
    for number in (0, 1):
        block = f"transformer_blocks.{number}"
        names += [f"{block}.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")]
        names += [f"{block}.attn.add_{c}_proj" for c in "qkv"]
        for stream in ("img", "txt"):
            names += [f"{block}.{stream}_{name}" for name in ("mlp.net.0.proj", "mlp.net.2", "mod.1")]
    assert weights.keys() >= set(names)
    return [(name, [name]) for name in names]


def _z_image_fused(weights: dict[str, Tensor]) -> list[tuple[str, list[str]]]:
    fused: list[tuple[str, list[str]]] = []
    for block in ("layers.0", "noise_refiner.0", "context_refiner.0", "noise_refiner.1", "context_refiner.1"):
        fused.append((f"{block}.attention.qkv", [f"{block}.attention.to_{c}" for c in "qkv"]))
        fused.append((f"{block}.attention.out", [f"{block}.attention.to_out.0"]))
        fused += [(name, [name]) for name in (f"{block}.feed_forward.w{number}" for number in (1, 2, 3))]
        fused.append((f"{block}.adaLN_modulation.0", [f"{block}.adaLN_modulation.0"]))
    fused += [(name, [name]) for name in ("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")]
    fused.append(("x_embedder", ["all_x_embedder.2-1"]))
    fused.append(("final_layer.linear", ["all_final_layer.2-1.linear"]))
    fused.append(("final_layer.adaLN_modulation.1", ["all_final_layer.2-1.adaLN_modulation.1"]))
    return [(name, layers) for name, layers in fused if all(layer in weights for layer in layers)]


FUSED: dict[str, Callable[[dict[str, Tensor]], list[tuple[str, list[str]]]]] = {
    "flux-dev": _flux_fused,
    "sd3.5-medium": _sd3_fused,
    "flux2-dev": _flux2_fused,
    "flux2-klein-base": _flux2_fused,
    "qwen-image": _qwen_fused,
    "z-image": _z_image_fused,
}

SWAPPED = {"flux-dev", "sd3.5-medium", "flux2-dev", "flux2-klein-base"}
"""Families whose original has shift before scale in the last layer's modulation, where diffusers has scale first."""

CONVERTERS = {
    "flux2-dev": convert_flux2_transformer_checkpoint_to_diffusers,
    "flux2-klein-base": convert_flux2_transformer_checkpoint_to_diffusers,
    "z-image": convert_z_image_transformer_checkpoint_to_diffusers,
}


def _halves_swapped(weight: Tensor) -> Tensor:
    first, second = weight.chunk(2)
    return torch.cat([second, first])


def _original(transformer: Any, family: str) -> dict[str, Tensor]:
    """Return a diffusers transformer's weights in the original checkpoint's layout."""
    weights = {n.removesuffix(".weight"): w for n, w in transformer.state_dict().items() if n.endswith(".weight")}
    original = {name: torch.cat([weights[layer] for layer in rows]) for name, rows in FUSED[family](weights)}
    last = "final_layer.adaLN_modulation.1"
    return original | {last: _halves_swapped(original[last])} if family in SWAPPED else original


def read_as_comfyui(file: Path, family: str, transformer: Any) -> tuple[dict[str, Tensor], set[str]]:
    """Return the weights with the adapter in `file` on top, and the keys that were not read."""
    lora, original = load_file(file), _original(transformer, family)
    weights = {n.removesuffix(".weight"): w for n, w in transformer.state_dict().items() if n.endswith(".weight")}
    left = set(lora)
    for target, layers in FUSED[family](weights):
        first = 0
        for layer in layers:
            rows = slice(first, first + len(weights[layer]))
            first = rows.stop
            up, down, alpha = (
                f"transformer.{layer}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha")
            )
            if up not in lora:
                continue
            scale = lora[alpha].item() / lora[down].shape[0] if alpha in lora else 1.0
            change = scale * (lora[up] @ lora[down])
            swapped = family in SWAPPED and target == "final_layer.adaLN_modulation.1"
            original[target][rows] += _halves_swapped(change) if swapped else change
            left -= {up, down, alpha}
    return original, left


def _adapted(family: str, folder: Path, *targets: str) -> PipelineModel:
    height, width = TINY[family].size
    model = load_model(str(folder), height=height, width=width, **TINY[family].options)
    assert isinstance(model, PipelineModel)
    names = (*model.lora_targets, *targets)
    policy = Policy(
        model, LoraConfig(rank=2, alpha=7, target_modules=names), seed=0, with_reference=False, ema_decay=0.0
    )
    with torch.no_grad():
        for parameter in policy.trained.values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", list(FUSED))
@pytest.mark.parametrize("more", [False, True])
def test_what_comfyui_reads_is_what_diffusers_merges(family: str, more: bool, tmp_path: Path) -> None:
    folder = save(family, tmp_path / "model")
    model = _adapted(family, folder, *(ALL_LAYERS[family] if more else ()))
    assert model.save_comfyui_lora(tmp_path / "comfyui.safetensors") == ""
    found, left = read_as_comfyui(
        tmp_path / "comfyui.safetensors", family, DiffusionPipeline.from_pretrained(folder).transformer
    )
    assert not left
    model.save_lora(tmp_path / "lora")
    merged = DiffusionPipeline.from_pretrained(folder)
    before = _original(merged.transformer, family)
    merged.load_lora_weights(tmp_path / "lora")
    merged.fuse_lora()
    merged.unload_lora_weights()
    expected = _original(merged.transformer, family)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)
    if family in CONVERTERS:  # diffusers' own account of the original checkpoint's layout
        converted = CONVERTERS[family]({f"{name}.weight": weight.clone() for name, weight in found.items()})
        state = merged.transformer.state_dict()
        assert len(converted) >= len(found)
        for name, weight in converted.items():
            torch.testing.assert_close(weight, state[name], rtol=0, atol=1e-6)
    changed = [name for name in found if not torch.equal(before[name], expected[name])]
    assert len(changed) >= 7  # so the reader has something to get wrong


def test_an_adapter_of_layers_that_comfyui_does_not_know_is_not_written(tmp_path: Path) -> None:
    family = "flux-dev"
    model = _adapted(family, save(family, tmp_path / "model"))
    model.comfyui_layers = r"transformer_blocks\.\d+\.attn\.to_[qkv]"
    assert "such as single_transformer_blocks.0.attn.to_k" in model.save_comfyui_lora(tmp_path / "a.safetensors")
    model.comfyui_layers = ""
    assert "family" in model.save_comfyui_lora(tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("flux2-dev", "double_stream_modulation_img.linear"),
        ("flux2-dev", "time_guidance_embed.timestep_embedder.linear_1"),
        ("qwen-image", "txt_mlp.net.1"),
        ("z-image", "noise_refiner.2.attention.to_q"),
    ],
)
def test_layers_without_a_name_in_comfyui_are_known_to_have_none(family: str, layer: str, tmp_path: Path) -> None:
    model = _adapted(family, save(family, tmp_path / "model"))
    assert re.fullmatch(model.comfyui_layers, layer) is None


@pytest.mark.parametrize(("family", "why"), [("wan2.1", "original checkpoint's names"), ("hunyuanvideo", "one layer")])
def test_families_that_comfyui_reads_in_another_layout_only_say_so(family: str, why: str, tmp_path: Path) -> None:
    model = _adapted(family, save(family, tmp_path / "model"))
    said = model.save_comfyui_lora(tmp_path / "a.safetensors")
    assert "ComfyUI reads adapters of" in said
    assert why in said
    assert not (tmp_path / "a.safetensors").exists()
