"""FLUX.1: `FluxTransformer2DModel` with a T5 encoder, CLIP's text encoder and an `AutoencoderKL`."""

from mixgrpo.shapes.autoencoder import autoencoder_parts, decoder_peak
from mixgrpo.shapes.blocks import (
    ATTENTION_TARGETS,
    TIME_CHANNELS,
    Heads,
    condition_embedders,
    flux_streams,
    last_layers,
    one_stream_block,
    two_stream_block,
)
from mixgrpo.shapes.files import ModelFiles, Numbers
from mixgrpo.shapes.layers import Network, linear
from mixgrpo.shapes.shape import ImageSize, Shape
from mixgrpo.shapes.text import clip_encoder, t5_encoder

LORA_TARGETS: tuple[str, ...] = (
    *ATTENTION_TARGETS,
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
)
"""Attention and feed-forward layers of the two-stream blocks, and the attention of the one-stream blocks."""

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
    heads = Heads(config["num_attention_heads"], config["attention_head_dim"])
    width, two, one = heads.width, config["num_layers"], config["num_single_layers"]
    embedders = {"timestep_embedder": TIME_CHANNELS, "text_embedder": config["pooled_projection_dim"]}
    if config.get("guidance_embeds"):
        embedders["guidance_embedder"] = TIME_CHANNELS
    layers = condition_embedders("time_text_embed", embedders, width)
    layers.append(linear("x_embedder", config["in_channels"], width, rows=image, stage=0))
    layers.append(linear("context_embedder", config["joint_attention_dim"], width, rows=text, stage=0))
    stage = _FIRST_BLOCK_STAGE
    for block in range(two):
        layers += two_stream_block(heads, flux_streams(text=text, image=image), block=block, stage=stage)
        stage += 4
    for block in range(two, two + one):
        layers += one_stream_block(heads, rows=text + image, block=block, stage=stage)
        stage += 3
    patch = config.get("patch_size", 1) ** 2
    channels = config.get("out_channels") or config["in_channels"]
    layers += last_layers(width, patch * channels, rows=image, stage=stage)
    return Network(layers, boundaries=(two + one) * (text + image) * width)
