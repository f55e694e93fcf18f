"""FLUX.1: `FluxTransformer2DModel` with a T5 encoder, CLIP's text encoder and an `AutoencoderKL`."""

from mixgrpo.shapes.autoencoder import autoencoder_parts, decoder_peak
from mixgrpo.shapes.files import ModelFiles, Numbers
from mixgrpo.shapes.layers import Kept, Layer, Network, attention, linear
from mixgrpo.shapes.shape import ImageSize, Shape
from mixgrpo.shapes.text import clip_encoder, t5_encoder

LORA_TARGETS: tuple[str, ...] = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
)
"""Attention and feed-forward layers of the two-stream blocks, and the attention of the one-stream blocks."""

_TIME_CHANNELS = 256
"""Sines and cosines of the time and of the guidance."""
_FORWARD_PEAK = 15
"""Numbers alive at once in a forward pass, per token and channel: at the rotation of queries and keys in a one-stream
block, as measured. Among them the four of the feed-forward layer, the residual, queries, keys and values."""
_BACKWARD_PEAK = 6
"""The same in a backward pass, besides what was kept: gradients of the wide layers of the last one-stream block.
Measured 5.6 when every weight is trained, 12 with adapters, 1 with checkpointing, which matter less."""
_FIRST_BLOCK_STAGE = 2
"""Stage of the first block's first layers; the embedders come before."""


def flux_shape(files: ModelFiles, size: ImageSize) -> Shape:
    """Return the shape of a FLUX.1 model. Latents are packed 2 x 2 into tokens."""
    config, vae = files.parts["transformer"], files.parts["vae"]
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    image = (size.height // (2 * factor)) * (size.width // (2 * factor))
    text = size.max_sequence_length
    width = config["num_attention_heads"] * config["attention_head_dim"]
    encoder, decoder = autoencoder_parts(vae, size)
    return Shape(
        source=files.source,
        transformer=flux_transformer(config, text=text, image=image),
        text_encoders=(clip_encoder(files.parts["text_encoder"]), t5_encoder(files.parts["text_encoder_2"], text)),
        decoder=decoder,
        decoder_peak=decoder_peak(vae, size),
        other_parameters=encoder.parameters,
        tokens=text + image,
        forward_peak=_FORWARD_PEAK * (text + image) * width,
        backward_peak=_BACKWARD_PEAK * (text + image) * width,
        latent_numbers=image * config["in_channels"],
        conditioning_numbers=text * config["joint_attention_dim"] + config["pooled_projection_dim"],
        lora_targets=LORA_TARGETS,
    )


def flux_transformer(config: Numbers, *, text: int, image: int) -> Network:
    """Return the transformer on `text` and `image` tokens."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    layers = _condition(config, width)
    layers.append(linear("x_embedder", config["in_channels"], width, rows=image, stage=0))
    layers.append(linear("context_embedder", config["joint_attention_dim"], width, rows=text, stage=0))
    stage = _FIRST_BLOCK_STAGE
    for block in range(config["num_layers"]):
        layers += _two_stream_block(config, text=text, image=image, block=block, stage=stage)
        stage += 4
    for block in range(config["num_layers"], config["num_layers"] + config["num_single_layers"]):
        layers += _one_stream_block(config, rows=text + image, block=block, stage=stage)
        stage += 3
    patch = config.get("patch_size", 1) ** 2
    channels = config.get("out_channels") or config["in_channels"]
    layers += [
        _modulation("norm_out.linear", width, parts=2, rows=image, block=-1, products=1),
        _layer_norm("norm_out.norm", width, rows=image, block=-1, stage=stage),
        linear("proj_out", width, patch * channels, rows=image, stage=stage),
    ]
    return Network(layers, boundary=(text + image) * width)


def _condition(config: Numbers, width: int) -> list[Layer]:
    """Return the embedders of time, guidance and pooled text; their last layers have an activation between."""
    embedders = {"timestep_embedder": _TIME_CHANNELS, "text_embedder": config["pooled_projection_dim"]}
    if config.get("guidance_embeds"):
        embedders["guidance_embedder"] = _TIME_CHANNELS
    layers: list[Layer] = []
    for name, inputs in embedders.items():
        layers += [
            linear(f"time_text_embed.{name}.linear_1", inputs, width, chain="condition", stage=0),
            linear(f"time_text_embed.{name}.linear_2", width, width, chain="condition", stage=1),
        ]
    return layers


def _modulation(name: str, width: int, *, parts: int, rows: int, block: int, products: int) -> Layer:
    """Return the layer that makes shifts, scales and gates; each scale and gate multiplies `rows` tokens."""
    kept = Kept(plain=products * rows * width)
    return linear(
        name, width, parts * width, chain="condition", block=block, stage=2, source="condition", keeps_if_trained=kept
    )


def _layer_norm(name: str, width: int, *, rows: int, block: int, stage: int) -> Layer:
    return Layer(name=name, block=block, stage=stage, keeps=Kept(wide=rows * (width + 2)))


def _activation(name: str, width: int, *, rows: int, block: int, stage: int) -> Layer:
    return Layer(name=name, block=block, stage=stage, keeps=Kept(plain=rows * width))


def _head_norm(name: str, config: Numbers, *, rows: int, block: int, stage: int) -> Layer:
    """Return the RMS norm of queries or keys, with one weight per channel of a head."""
    heads, head_width = config["num_attention_heads"], config["attention_head_dim"]
    return Layer(
        name=name,
        parameters=head_width,
        block=block,
        stage=stage,
        keeps=Kept(wide=rows * heads * (head_width + 1)),
        keeps_if_trained=Kept(wide=rows * heads * head_width),
    )


def _attention(config: Numbers, *, rows: int, block: int, stage: int) -> Layer:
    heads, head_width = config["num_attention_heads"], config["attention_head_dim"]
    return attention("attn", heads=heads, head_width=head_width, rows=rows, block=block, stage=stage)


def _two_stream_block(config: Numbers, *, text: int, image: int, block: int, stage: int) -> list[Layer]:
    """Return a block with weights of their own for text and image tokens, which meet in the attention."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    streams = (
        (image, "norm1", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), "to_out.0", "ff"),
        (text, "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k"),
         "to_add_out", "ff_context"),
    )  # fmt: skip
    before: list[Layer] = []
    after: list[Layer] = []
    for rows, norm, projections, head_norms, out, feed in streams:
        # kept for the conditioning's gradient: two normed inputs (scales) and two outputs (gates)
        before.append(_modulation(f"{norm}.linear", width, parts=6, rows=rows, block=block, products=4))
        before.append(_layer_norm(f"{norm}.norm", width, rows=rows, block=block, stage=stage))
        before += [
            linear(f"attn.{name}", width, width, rows=rows, block=block, stage=stage, source=norm)
            for name in projections
        ]
        before += [_head_norm(f"attn.{name}", config, rows=rows, block=block, stage=stage + 1) for name in head_norms]
        after += [
            linear(f"attn.{out}", width, width, rows=rows, block=block, stage=stage + 1),
            _layer_norm(f"{norm.replace('1', '2')}", width, rows=rows, block=block, stage=stage + 2),
            linear(f"{feed}.net.0.proj", width, 4 * width, rows=rows, block=block, stage=stage + 2),
            _activation(f"{feed}.net.0", 4 * width, rows=rows, block=block, stage=stage + 3),
            linear(f"{feed}.net.2", 4 * width, width, rows=rows, block=block, stage=stage + 3),
        ]
    return [*before, _attention(config, rows=text + image, block=block, stage=stage + 1), *after]


def _one_stream_block(config: Numbers, *, rows: int, block: int, stage: int) -> list[Layer]:
    """Return a block that takes all tokens alike, its feed-forward layer beside its attention."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    projections = {"proj_mlp": 4 * width, "attn.to_q": width, "attn.to_k": width, "attn.to_v": width}
    return [
        # kept for the conditioning's gradient: the normed input (scale) and the output (gate)
        _modulation("norm.linear", width, parts=3, rows=rows, block=block, products=2),
        _layer_norm("norm.norm", width, rows=rows, block=block, stage=stage),
        *(
            linear(name, width, outputs, rows=rows, block=block, stage=stage, source="norm")
            for name, outputs in projections.items()
        ),
        _activation("act_mlp", 4 * width, rows=rows, block=block, stage=stage + 1),
        *(_head_norm(f"attn.{name}", config, rows=rows, block=block, stage=stage + 1) for name in ("norm_q", "norm_k")),
        _attention(config, rows=rows, block=block, stage=stage + 1),
        linear("proj_out", 5 * width, width, rows=rows, block=block, stage=stage + 2),
    ]
