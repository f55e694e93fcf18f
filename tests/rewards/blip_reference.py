"""BLIP's vision tower and text encoder and ImageReward's head, written from the papers in plain torch.

Works on a dictionary of weights in the layout of the published checkpoint, shares no code with the package, and knows
no batches of different lengths: a prompt is never padded.
"""

import math

import torch
from torch.nn.functional import gelu, layer_norm, linear

PATCH, SIDE = 16, 32
VISION = {"width": 128, "layers": 2, "hidden": 96}
TEXT = {"width": 24, "layers": 2, "hidden": 40, "heads": 3, "positions": 40, "eps": 1e-11}
HEAD = {0: 20, 2: 12, 4: 8, 6: 4, 7: 1}


def tiny_checkpoint(*, vocabulary):
    """Return random weights in the published layout, with the keys that are no weights of the score."""
    generator = torch.Generator().manual_seed(0)
    width, text = VISION["width"], TEXT["width"]

    def normal(*shape, scale=0.3):
        return scale * torch.randn(shape, generator=generator)

    weights = {}

    def add_linear(name, inputs, outputs):
        weights[f"{name}.weight"] = normal(outputs, inputs, scale=1 / math.sqrt(inputs))
        weights[f"{name}.bias"] = normal(outputs)

    def add_norm(name, size):
        weights[f"{name}.weight"] = 1 + normal(size)
        weights[f"{name}.bias"] = normal(size)

    # The embeddings are so small that a wrong epsilon in the first normalisation shows.
    tower = "blip.visual_encoder"
    weights[f"{tower}.cls_token"] = normal(1, 1, width, scale=1e-3)
    weights[f"{tower}.pos_embed"] = normal(1, 1 + (SIDE // PATCH) ** 2, width, scale=1e-3)
    weights[f"{tower}.patch_embed.proj.weight"] = normal(width, 3, PATCH, PATCH, scale=1e-4)
    weights[f"{tower}.patch_embed.proj.bias"] = normal(width, scale=1e-3)
    for i in range(VISION["layers"]):
        block = f"{tower}.blocks.{i}"
        add_norm(f"{block}.norm1", width)
        add_linear(f"{block}.attn.qkv", width, 3 * width)
        add_linear(f"{block}.attn.proj", width, width)
        add_norm(f"{block}.norm2", width)
        add_linear(f"{block}.mlp.fc1", width, VISION["hidden"])
        add_linear(f"{block}.mlp.fc2", VISION["hidden"], width)
    add_norm(f"{tower}.norm", width)

    encoder = "blip.text_encoder"
    weights[f"{encoder}.embeddings.position_ids"] = torch.arange(TEXT["positions"])[None]
    weights[f"{encoder}.embeddings.word_embeddings.weight"] = normal(vocabulary, text, scale=1e-5)
    weights[f"{encoder}.embeddings.position_embeddings.weight"] = normal(TEXT["positions"], text, scale=1e-5)
    add_norm(f"{encoder}.embeddings.LayerNorm", text)
    for i in range(TEXT["layers"]):
        layer = f"{encoder}.encoder.layer.{i}"
        for attention, inputs in (("attention", text), ("crossattention", width)):
            add_linear(f"{layer}.{attention}.self.query", text, text)
            add_linear(f"{layer}.{attention}.self.key", inputs, text)
            add_linear(f"{layer}.{attention}.self.value", inputs, text)
            add_linear(f"{layer}.{attention}.output.dense", text, text)
            add_norm(f"{layer}.{attention}.output.LayerNorm", text)
        add_linear(f"{layer}.intermediate.dense", text, TEXT["hidden"])
        add_linear(f"{layer}.output.dense", TEXT["hidden"], text)
        add_norm(f"{layer}.output.LayerNorm", text)

    add_linear("blip.vision_proj", width, 6)
    add_linear("blip.text_proj", text, 6)
    inputs = text
    for i, outputs in HEAD.items():
        add_linear(f"mlp.layers.{i}", inputs, outputs)
        inputs = outputs
    return weights


def med_config(*, vocabulary):
    """Return what `med_config.json` says about the text encoder of `tiny_checkpoint`."""
    return {
        "hidden_act": "gelu",
        "hidden_size": TEXT["width"],
        "intermediate_size": TEXT["hidden"],
        "layer_norm_eps": TEXT["eps"],
        "max_position_embeddings": TEXT["positions"],
        "model_type": "bert",
        "num_attention_heads": TEXT["heads"],
        "num_hidden_layers": TEXT["layers"],
        "vocab_size": vocabulary,
        "encoder_width": 768,
        "add_cross_attention": True,
    }


def reference_score(weights, pixels, ids):
    """Score one normalised picture [3, S, S] against one unpadded list of tokens, in float64."""
    weights = {key: weight.double() for key, weight in weights.items()}
    state = _read(weights, torch.tensor(ids), _see(weights, pixels.double()))[0]
    for i in HEAD:
        state = linear(state, weights[f"mlp.layers.{i}.weight"], weights[f"mlp.layers.{i}.bias"])
    return ((state - 0.16717362830052426) / 1.0333394966054072).item()


def _see(weights, pixels):
    """Vision transformer with normalisation before each part."""
    tower = "blip.visual_encoder"
    width = VISION["width"]
    kernel = weights[f"{tower}.patch_embed.proj.weight"].flatten(1)
    rows = [
        linear(pixels[:, y : y + PATCH, x : x + PATCH].flatten(), kernel, weights[f"{tower}.patch_embed.proj.bias"])
        for y in range(0, SIDE, PATCH)
        for x in range(0, SIDE, PATCH)
    ]
    x = torch.stack([weights[f"{tower}.cls_token"][0, 0], *rows]) + weights[f"{tower}.pos_embed"][0]
    for i in range(VISION["layers"]):
        block = f"{tower}.blocks.{i}"
        qkv = _linear(weights, f"{block}.attn.qkv", _norm(weights, f"{block}.norm1", x, 1e-6))
        mixed = _attend(*qkv.split(width, dim=1), heads=width // 64)
        x = x + _linear(weights, f"{block}.attn.proj", mixed)
        inner = gelu(_linear(weights, f"{block}.mlp.fc1", _norm(weights, f"{block}.norm2", x, 1e-6)))
        x = x + _linear(weights, f"{block}.mlp.fc2", inner)
    return _norm(weights, f"{tower}.norm", x, 1e-6)


def _read(weights, ids, seen):
    """BERT, normalisation after each part, that looks at the picture after attending to itself."""
    encoder = "blip.text_encoder"
    words = weights[f"{encoder}.embeddings.word_embeddings.weight"][ids]
    x = words + weights[f"{encoder}.embeddings.position_embeddings.weight"][: len(ids)]
    x = _norm(weights, f"{encoder}.embeddings.LayerNorm", x, TEXT["eps"])
    for i in range(TEXT["layers"]):
        layer = f"{encoder}.encoder.layer.{i}"
        for attention in ("attention", "crossattention"):
            source = x if attention == "attention" else seen
            part = f"{layer}.{attention}"
            mixed = _attend(
                _linear(weights, f"{part}.self.query", x),
                _linear(weights, f"{part}.self.key", source),
                _linear(weights, f"{part}.self.value", source),
                heads=TEXT["heads"],
            )
            x = _norm(
                weights, f"{part}.output.LayerNorm", x + _linear(weights, f"{part}.output.dense", mixed), TEXT["eps"]
            )
        inner = gelu(_linear(weights, f"{layer}.intermediate.dense", x))
        x = _norm(
            weights, f"{layer}.output.LayerNorm", x + _linear(weights, f"{layer}.output.dense", inner), TEXT["eps"]
        )
    return x


def _attend(query, key, value, *, heads):
    """Scaled dot-product attention, head by head."""
    parts = zip(query.chunk(heads, dim=1), key.chunk(heads, dim=1), value.chunk(heads, dim=1), strict=True)
    return torch.cat([torch.softmax(q @ k.T / math.sqrt(q.shape[1]), dim=1) @ v for q, k, v in parts], dim=1)


def _linear(weights, name, x):
    return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights, name, x, eps):
    return layer_norm(x, (x.shape[-1],), weights[f"{name}.weight"], weights[f"{name}.bias"], eps)
