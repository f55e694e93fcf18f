"""A small random Mask2Former as the reward `geneval` loads it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

COCO = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
"""The classes of the published detector, whose names a prompt may ask for."""

PREPROCESSING: dict[str, Any] = {
    "image_processor_type": "Mask2FormerImageProcessor",
    "size": {"shortest_edge": 64, "longest_edge": 128},
    "size_divisor": 32,
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "ignore_index": 255,
}


def write_detector(folder: Path, classes: Sequence[str] = COCO) -> Path:
    """Write a detector of `classes` that finds objects of many sizes with confidences from 0 to nearly 1."""
    backbone = cast(Any, SwinConfig)(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=12,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = Mask2FormerForUniversalSegmentation(config).eval()
    _spread(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING), encoding="utf-8")
    return folder


def _spread(model: Any) -> None:
    """Make classes sure, and masks smaller than the picture: their logits are scaled, and lowered by 3."""
    model.class_predictor.weight.data.normal_(std=0.7, generator=torch.Generator().manual_seed(1))
    features = model.model.pixel_level_module.decoder.mask_projection
    embedding = model.get_submodule("model.transformer_module.decoder.mask_predictor.mask_embedder.2.0")
    for parameter in embedding.parameters():
        parameter.data *= 50
    for layer, constant in ((features, 1.0), (embedding, -3.0)):
        layer.weight.data[0] = 0
        layer.bias.data[0] = constant
