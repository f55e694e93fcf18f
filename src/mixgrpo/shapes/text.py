"""Text encoders, from their config files: T5's encoder, CLIP's text model and language models."""

from dataclasses import replace

from mixgrpo.shapes.files import Numbers
from mixgrpo.shapes.layers import Layer, Network, attention, linear


def t5_encoder(config: Numbers, tokens: int, *, biases: int = 1) -> Network:
    """Return T5's encoder on a prompt padded to `tokens` tokens; T5 has no biases but those of distances.

    `biases`: layers that have them, T5's first or all of UMT5.
    """
    width, hidden, heads = config["d_model"], config["d_ff"], config["num_heads"]
    inner = heads * config["d_kv"]
    gates = ("wi_0", "wi_1") if config["is_gated_act"] else ("wi",)
    layers = [
        Layer(name="shared", parameters=config["vocab_size"] * width),
        Layer(name="relative_attention_bias", parameters=biases * config["relative_attention_num_buckets"] * heads),
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


def clip_encoder(config: Numbers, *, projects: bool = False) -> Network:
    """Return CLIP's text model, whose prompts are always padded to its whole length.

    `projects`: the vector of the whole prompt goes through a layer more.
    """
    width, hidden, tokens = config["hidden_size"], config["intermediate_size"], config["max_position_embeddings"]
    heads = config["num_attention_heads"]
    layers = [
        Layer(name="token_embedding", parameters=config["vocab_size"] * width),
        Layer(name="position_embedding", parameters=tokens * width),
        Layer(name="final_layer_norm", parameters=2 * width),
    ]
    if projects:
        layers.append(linear("text_projection", width, config["projection_dim"], bias=False))
    for _ in range(config["num_hidden_layers"]):
        layers += [linear(name, width, width, rows=tokens) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
        layers += [
            attention("attention", heads=heads, head_width=width // heads, rows=tokens),
            linear("fc1", width, hidden, rows=tokens),
            linear("fc2", hidden, width, rows=tokens),
            Layer(name="layer_norms", parameters=4 * width),
        ]
    return Network(layers)


def language_model(
    config: Numbers, tokens: int, *, bias: bool = False, head_norms: bool = False, writes: bool, ties: bool = False
) -> Network:
    """Return a language model on `tokens` tokens: LLaMA, Mistral or Qwen.

    `bias`: queries, keys and values have biases, as in Qwen2.5; `head_norms`: queries and keys have norms, as in Qwen3;
    `writes`: it has the layer that would write an answer, which it runs for every token; `ties`: unless the config says
    otherwise, that layer's weights are those of the first one.
    """
    text = _language(config)
    width, hidden, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    head_width = text.get("head_dim") or width // heads
    inner, shared = heads * head_width, text["num_key_value_heads"] * head_width
    layers = [
        Layer(name="embed_tokens", parameters=text["vocab_size"] * width),
        Layer(name="norm", parameters=width),
    ]
    if writes:
        last = linear("lm_head", width, text["vocab_size"], rows=tokens, bias=False)
        layers.append(replace(last, parameters=0) if config.get("tie_word_embeddings", ties) else last)
    for _ in range(text["num_hidden_layers"]):
        layers += [
            linear("q_proj", width, inner, rows=tokens, bias=bias),
            *(linear(name, width, shared, rows=tokens, bias=bias) for name in ("k_proj", "v_proj")),
            Layer(name="head_norms", parameters=2 * head_width * head_norms),
            attention("attention", heads=heads, head_width=head_width, rows=tokens),
            linear("o_proj", inner, width, rows=tokens, bias=False),
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


def mistral3_eyes(config: Numbers) -> Network:
    """Return the half of Mistral 3 that sees, which encoding a prompt does not run: parameters alone."""
    eyes, into = config["vision_config"], _language(config)["hidden_size"]
    width, hidden = eyes["hidden_size"], eyes["intermediate_size"]
    patch = eyes.get("num_channels", 3) * eyes["patch_size"] ** 2 * width
    blocks = eyes["num_hidden_layers"] * (4 * width * width + 3 * width * hidden + 2 * width)
    merger = width + width * width * config["spatial_merge_size"] ** 2
    bias = config["multimodal_projector_bias"]
    projector = (width + bias) * into + (into + bias) * into
    return Network([Layer(name="vision_tower", parameters=patch + width + blocks + merger + projector)])


def _language(config: Numbers) -> Numbers:
    """Return the numbers of the language half, which newer files have in a part of their own."""
    return config.get("text_config") or config
