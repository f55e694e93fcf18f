"""The published numbers build the real classes, at full size on torch's device without memory, as counted."""

import importlib
import json
from importlib import resources
from typing import Any

import pytest
import torch

from mixgrpo.shapes import ImageSize, Shape, Training, read_shape
from mixgrpo.shapes.files import PUBLISHED
from tests.shapes.test_counts import operations, parameters

TEXT = 64
SIZE = ImageSize(256, 512, TEXT, 4.0)
CLIP = ImageSize(256, 512, TEXT, 4.0, num_frames=9)

KNOWN = {
    "flux1-dev.json": 11_901_408_320,
    "flux1-schnell.json": 11_891_178_560,
    "flux2-dev.json": 32_223_281_152,
    "flux2-klein-4b.json": 3_875_544_576,
    "flux2-klein-base-4b.json": 3_875_544_576,
    "hunyuanvideo.json": 12_821_012_544,
    "qwen-image.json": 20_430_401_088,
    "sd3.5-large.json": 8_056_627_520,
    "sd3.5-medium.json": 2_243_171_520,
    "wan2.1-1.3b.json": 1_418_996_800,
    "wan2.1-14b.json": 14_288_491_584,
    "wan2.2-5b.json": 4_999_787_712,
    "wan2.2-a14b.json": 14_288_491_584,
    "z-image-turbo.json": 6_154_908_736,
}
"""File -> parameters of the (first) transformer, as the checkpoints have them."""
HUB_IDS = {file: hub_id for hub_id, file in PUBLISHED.items()}


def parts_of(file: str) -> dict[str, Any]:
    return json.loads((resources.files("mixgrpo") / "shapes" / "published" / file).read_text(encoding="utf-8"))


def build(library: str, name: str, config: dict[str, Any]) -> Any:
    """Make a part as diffusers and transformers make it from its config file."""
    cls: Any = getattr(importlib.import_module(library), name)
    if library == "diffusers":
        return cls.from_config(config)
    known = {key: value for key, value in config.items() if key not in ("architectures", "is_gated_act")}
    return cls(cls.config_class(**known))


def shape_of(file: str) -> Shape:
    found = read_shape(HUB_IDS[file], CLIP if _draws_clips(file) else SIZE)
    assert found is not None
    return found


def _draws_clips(file: str) -> bool:
    return file.startswith(("wan", "hunyuan"))


@pytest.mark.parametrize("file", KNOWN)
def test_every_part_has_as_many_parameters_as_the_real_class(file: str) -> None:
    parts = parts_of(file)
    index, shape = parts["model_index"], shape_of(file)
    assert KNOWN.keys() == HUB_IDS.keys()
    assert set(parts) <= {"model_index", *index}
    with torch.device("meta"):
        counted = {
            name: parameters(build(index[name][0], index[name][1], parts[name]))
            for name in parts
            if name not in ("model_index", "scheduler")
        }
    assert counted["transformer"] == shape.transformer.parameters == KNOWN[file]
    assert shape.parameters == counted["transformer"] + counted.get("transformer_2", 0)
    others = sum(number for name, number in counted.items() if not name.startswith("transformer"))
    encoders = sum(network.parameters for network in shape.text_encoders)
    assert others == encoders + shape.decoder.parameters + shape.other_parameters


@pytest.mark.parametrize(
    "file", ["sd3.5-medium.json", "sd3.5-large.json", "flux2-klein-4b.json", "wan2.1-1.3b.json", "hunyuanvideo.json"]
)
def test_a_transformer_does_as_many_operations(file: str) -> None:
    parts, shape = parts_of(file), shape_of(file)
    config = parts["transformer"]
    with torch.device("meta"):
        transformer = build("diffusers", config["_class_name"], config)
        inputs = INPUTS[config["_class_name"]](config)
        work = operations(lambda: transformer(**inputs, return_dict=False)[0].sum().backward())
    assert work == shape.transformer.forward() + shape.transformer.backward(Training())


def _sd3(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 16, 32, 64),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 77 + TEXT, config["joint_attention_dim"]),
        "pooled_projections": torch.zeros(1, config["pooled_projection_dim"]),
    }


def _flux2(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 16 * 32, config["in_channels"]),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, TEXT, config["joint_attention_dim"]),
        "txt_ids": torch.zeros(TEXT, 4),
        "img_ids": torch.zeros(16 * 32, 4),
    }


def _wan(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, config["in_channels"], 3, 32, 64),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, TEXT, config["text_dim"]),
    }


def _hunyuan_video(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, config["in_channels"], 3, 32, 64),
        "timestep": torch.zeros(1),
        "guidance": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, TEXT, config["text_embed_dim"]),
        "encoder_attention_mask": torch.ones(1, TEXT, dtype=torch.bool),
        "pooled_projections": torch.zeros(1, config["pooled_projection_dim"]),
    }


INPUTS = {
    "SD3Transformer2DModel": _sd3,
    "Flux2Transformer2DModel": _flux2,
    "WanTransformer3DModel": _wan,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
}
