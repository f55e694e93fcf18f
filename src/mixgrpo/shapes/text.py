"""Text encoders, from their config files: T5's encoder and CLIP's text model."""

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
