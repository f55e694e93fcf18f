"""The file for ComfyUI, read by its rules as a reader of its own has them, gives the weights that diffusers merges.

The reader is written from what ComfyUI's loader does: it walks over the names it knows, takes `NAME.lora_up.weight`,
`NAME.lora_down.weight` and `NAME.alpha`, and adds (alpha / rank) up @ down, or up @ down where there is no alpha, to
some rows of a weight of the original checkpoint's layout, in which queries, keys and values are one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
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


FUSED: dict[str, Callable[[dict[str, Tensor]], list[tuple[str, list[str]]]]] = {
    "flux-dev": _flux_fused,
    "sd3.5-medium": _sd3_fused,
}


def _halves_swapped(weight: Tensor) -> Tensor:
    first, second = weight.chunk(2)
    return torch.cat([second, first])


def _original(transformer: Any, family: str) -> dict[str, Tensor]:
    """Return a diffusers transformer's weights in the original checkpoint's layout."""
    weights = {n.removesuffix(".weight"): w for n, w in transformer.state_dict().items() if n.endswith(".weight")}
    original = {name: torch.cat([weights[layer] for layer in rows]) for name, rows in FUSED[family](weights)}
    # The original has shift before scale here, diffusers the other way round.
    last = "final_layer.adaLN_modulation.1"
    return original | {last: _halves_swapped(original[last])}


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
            swapped = target == "final_layer.adaLN_modulation.1"
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
