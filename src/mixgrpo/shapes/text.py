"""Text encoders, from their config files: T5's encoder, CLIP's text model and Qwen2.5-VL."""

from mixgrpo.shapes.files import Numbers
from mixgrpo.shapes.layers import Layer, Network, attention, linear


def t5_encoder(config: Numbers, tokens: int) -> Network:
    """Return T5's encoder on a prompt padded to `tokens` tokens; T5 has no biases."""
    width, hidden, heads = config["d_model"], config["d_ff"], config["num_heads"]
    inner = heads * config["d_kv"]
    gates = ("wi_0", "wi_1") if config["is_gated_act"] else ("wi",)
    layers = [
        Layer(name="shared", parameters=config["vocab_size"] * width),
        Layer(name="relative_attention_bias", parameters=config["relative_attention_num_buckets"] * heads),
        Layer(name="final_layer_norm", parameters=width),
    ]
    for _ in range(config["num_layers"]):
        layers += [linear(name, width, inner, rows=tokens, bias=False) for name in ("q", "k", "v")]
        layers += [linear(name, width, hidden, rows=tokens, bias=False) for name in gates]
        layers += [
            attention("attention", heads=heads, head_width=config["d_kv"], rows=tokens),
            linear("o", inner, width, rows=tokens, bias=False),
            linear("wo", hidden, width, rows=tokens, bias=False),
            Layer(name="layer_norms", parameters=2 * width),
        ]
    return Network(layers)


def clip_encoder(config: Numbers) -> Network:
    """Return CLIP's text model, whose prompts are always padded to its whole length."""
    width, hidden, tokens = config["hidden_size"], config["intermediate_size"], config["max_position_embeddings"]
    heads = config["num_attention_heads"]
    layers = [
        Layer(name="token_embedding", parameters=config["vocab_size"] * width),
        Layer(name="position_embedding", parameters=tokens * width),
        Layer(name="final_layer_norm", parameters=2 * width),
    ]
    for _ in range(config["num_hidden_layers"]):
        layers += [linear(name, width, width, rows=tokens) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
        layers += [
            attention("attention", heads=heads, head_width=width // heads, rows=tokens),
            linear("fc1", width, hidden, rows=tokens),
            linear("fc2", hidden, width, rows=tokens),
            Layer(name="layer_norms", parameters=4 * width),
        ]
    return Network(layers)


def qwen_vl_encoder(config: Numbers, tokens: int) -> Network:
    """Return the language half of Qwen2.5-VL on `tokens` tokens, with the layer that would write an answer."""
    text = _language(config)
    width, hidden, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    head_width = width // heads
    shared = head_width * text["num_key_value_heads"]
    layers = [
        Layer(name="embed_tokens", parameters=text["vocab_size"] * width),
        Layer(name="norm", parameters=width),
        linear("lm_head", width, text["vocab_size"], rows=tokens, bias=False),
    ]
    for _ in range(text["num_hidden_layers"]):
        layers += [
            linear("q_proj", width, width, rows=tokens),
            *(linear(name, width, shared, rows=tokens) for name in ("k_proj", "v_proj")),
            attention("attention", heads=heads, head_width=head_width, rows=tokens),
            linear("o_proj", width, width, rows=tokens, bias=False),
            *(linear(name, width, hidden, rows=tokens, bias=False) for name in ("gate_proj", "up_proj")),
            linear("down_proj", hidden, width, rows=tokens, bias=False),
            Layer(name="layer_norms", parameters=2 * width),
        ]
    return Network(layers)


def qwen_vl_eyes(config: Numbers) -> Network:
    """Return the half of Qwen2.5-VL that sees, which encoding a prompt does not run: parameters alone."""
    eyes = config["vision_config"]
    width, hidden = eyes["hidden_size"], eyes["intermediate_size"]
    patch = eyes.get("in_channels", 3) * eyes["temporal_patch_size"] * eyes["patch_size"] ** 2
    merged = width * eyes["spatial_merge_size"] ** 2
    block = (width + 1) * 4 * width + 2 * (width + 1) * hidden + (hidden + 1) * width + 2 * width
    merger = width + (merged + 1) * merged + (merged + 1) * eyes["out_hidden_size"]
    return Network([Layer(name="visual", parameters=patch * width + eyes["depth"] * block + merger)])


def _language(config: Numbers) -> Numbers:
    """Return the numbers of the language half, which newer files have in a part of their own."""
    return config.get("text_config") or config
