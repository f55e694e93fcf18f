"""HunyuanVideo: `HunyuanVideoTransformer3DModel` with LLaMA, CLIP's text encoder and an `AutoencoderKLHunyuanVideo`."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from mixgrpo.shapes.blocks import (
    ATTENTION_TARGETS,
    TIME_CHANNELS,
    Heads,
    condition_embedders,
    feed_forward,
    flux_streams,
    last_layers,
    layer_norm,
    modulation,
    one_stream_block,
    two_stream_block,
)
from mixgrpo.shapes.files import ModelFiles, Numbers
from mixgrpo.shapes.hunyuan_autoencoder import hunyuan_autoencoder_parts, hunyuan_decoder_peak, hunyuan_latent
from mixgrpo.shapes.layers import Layer, Network, attention, linear
from mixgrpo.shapes.shape import ImageSize, Shape
from mixgrpo.shapes.text import clip_encoder, language_model

_TEMPLATE = 95
"""Tokens before a prompt, which are encoded and then cut off."""
_FORWARD_PEAK = 16
"""Numbers alive at once in a forward pass, per token and channel, as measured."""
_BACKWARD_PEAK = 6
"""The same in a backward pass, besides what was kept: 0 to 11 when every weight is trained, 10 to 15 with adapters."""
_FIRST_STAGE = 2
"""Stage of the first refining block; the embedders come before."""


def hunyuan_video_shape(files: ModelFiles, size: ImageSize) -> Shape:
    """Return the shape of a HunyuanVideo model. Prompts are reckoned as long as they may be."""
    config, vae = files.parts["transformer"], files.parts["vae"]
    cells, patch = hunyuan_latent(vae, size), _patch(config)
    clip = prod(side // part for side, part in zip(cells, patch, strict=True))
    text, width = size.max_sequence_length, config["num_attention_heads"] * config["attention_head_dim"]
    encoder, decoder = hunyuan_autoencoder_parts(vae, size)
    return Shape(
        source=files.source,
        transformer=hunyuan_video_transformer(config, text=text, clip=clip),
        text_encoders=(
            language_model(files.parts["text_encoder"], _TEMPLATE + text, writes=False),
            clip_encoder(files.parts["text_encoder_2"]),
        ),
        decoder=decoder,
        decoder_peak=hunyuan_decoder_peak(vae, size),
        other_parameters=encoder.parameters,
        tokens=text + clip,
        forward_peak=_FORWARD_PEAK * (text + clip) * width,
        backward_peak=_BACKWARD_PEAK * (text + clip) * width,
        latent_numbers=prod(cells) * config["in_channels"],
        conditioning_numbers=text * config["text_embed_dim"] + config["pooled_projection_dim"],
        lora_targets=ATTENTION_TARGETS,
    )


def hunyuan_video_transformer(config: Numbers, *, text: int, clip: int) -> Network:
    """Return the transformer on `text` tokens and `clip` tokens of the clip."""
    heads = Heads(config["num_attention_heads"], config["attention_head_dim"])
    width, two, one = heads.width, config["num_layers"], config["num_single_layers"]
    embedders = {"timestep_embedder": TIME_CHANNELS, "text_embedder": config["pooled_projection_dim"]}
    if config.get("guidance_embeds"):
        embedders["guidance_embedder"] = TIME_CHANNELS
    patch = prod(_patch(config))
    layers = [
        *condition_embedders("time_text_embed", embedders, width),
        linear("x_embedder.proj", patch * config["in_channels"], width, rows=clip, chain="apart", stage=0),
        *_refiner(config, heads, text),
    ]
    stage = _FIRST_STAGE + 4 * config["num_refiner_layers"]
    picture, words = flux_streams(text=text, image=clip)
    for block in range(two):
        # the clip has met the text only after the first attention
        streams = (replace(picture, chain="apart") if block == 0 else picture, words)
        layers += two_stream_block(heads, streams, block=block, stage=stage)
        stage += 4
    for block in range(two, two + one):
        layers += one_stream_block(heads, rows=text + clip, block=block, stage=stage, parts_again=True)
        stage += 3
    layers += last_layers(width, patch * config["out_channels"], rows=clip, stage=stage)
    return Network(layers, boundaries=(two + one) * (text + clip) * width)


def _refiner(config: Numbers, heads: Heads, text: int) -> list[Layer]:
    """Return what refines the text before the blocks, told the time and the mean of the text."""
    width, words = heads.width, config["text_embed_dim"]
    embedders = {"timestep_embedder": TIME_CHANNELS, "text_embedder": words}
    layers = [
        *condition_embedders("context_embedder.time_text_embed", embedders, width),
        linear("context_embedder.proj_in", words, width, rows=text, stage=0),
    ]
    for index in range(config["num_refiner_layers"]):
        layers += _refining_block(heads, rows=text, index=index, stage=_FIRST_STAGE + 4 * index)
    return layers


def _refining_block(heads: Heads, *, rows: int, index: int, stage: int) -> list[Layer]:
    """Return a block of the text alone, whose only modulation is of its two outputs. It takes four stages."""
    width, name = heads.width, f"refiner_blocks.{index}"
    return [
        layer_norm(f"{name}.norm1", width, rows=rows, block=-1, stage=stage, affine=True),
        *(
            linear(f"{name}.attn.{part}", width, width, rows=rows, stage=stage, source=f"{name}.norm1")
            for part in ("to_q", "to_k", "to_v")
        ),
        attention(f"{name}.attn", heads=heads.count, head_width=heads.size, rows=rows, stage=stage + 1),
        linear(f"{name}.attn.to_out.0", width, width, rows=rows, stage=stage + 1, source="=attention"),
        layer_norm(f"{name}.norm2", width, rows=rows, block=-1, stage=stage + 2, affine=True),
        *feed_forward(f"{name}.ff", width, rows=rows, block=-1, stage=stage + 2),
        modulation(f"{name}.norm_out.linear", width, parts=2, rows=rows, block=-1, products=2),
    ]


def _patch(config: Numbers) -> Sequence[int]:
    return config["patch_size_t"], config["patch_size"], config["patch_size"]
