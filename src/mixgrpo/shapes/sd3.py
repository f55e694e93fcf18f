"""Stable Diffusion 3 and 3.5: `SD3Transformer2DModel` with two CLIPs, a T5 encoder and an `AutoencoderKL`."""

from dataclasses import replace

from mixgrpo.shapes.autoencoder import autoencoder_parts, decoder_peak
from mixgrpo.shapes.blocks import (
    ATTENTION_TARGETS,
    TIME_CHANNELS,
    Heads,
    condition_embedders,
    flux_streams,
    head_norm,
    last_layers,
    two_stream_block,
)
from mixgrpo.shapes.files import ModelFiles, Numbers
from mixgrpo.shapes.layers import Layer, Network, attention, linear
from mixgrpo.shapes.shape import ImageSize, Shape
from mixgrpo.shapes.text import clip_encoder, t5_encoder

_FORWARD_PEAK = 10
"""Numbers alive at once in a forward pass, per token and channel, as measured: 9 to 11."""
_BACKWARD_PEAK = 2
"""The same in a backward pass, besides what was kept: -3 to 5. With checkpointing 20 to 60 are, without over 100."""
_FIRST_BLOCK_STAGE = 2
"""Stage of the first block's first layers; the embedders come before."""


def sd3_shape(files: ModelFiles, size: ImageSize) -> Shape:
    """Return the shape of a Stable Diffusion 3 model. A text is what the CLIPs read and what T5 reads, in a row."""
    config, vae = files.parts["transformer"], files.parts["vae"]
    clips = files.parts["text_encoder"], files.parts["text_encoder_2"]
    side = 2 ** (len(vae["block_out_channels"]) - 1) * config["patch_size"]
    image = (size.height // side) * (size.width // side)
    text = clips[0]["max_position_embeddings"] + size.max_sequence_length
    width = config["num_attention_heads"] * config["attention_head_dim"]
    encoder, decoder = autoencoder_parts(vae, size)
    t5 = t5_encoder(files.parts["text_encoder_3"], size.max_sequence_length)
    return Shape(
        source=files.source,
        transformer=sd3_transformer(config, text=text, image=image),
        passes=2 if size.guidance_scale > 1.0 else 1,
        text_encoders=(*(clip_encoder(clip, projects=True) for clip in clips), t5),
        decoder=decoder,
        decoder_peak=decoder_peak(vae, size),
        other_parameters=encoder.parameters,
        tokens=text + image,
        forward_peak=_FORWARD_PEAK * (text + image) * width,
        backward_peak=_BACKWARD_PEAK * (text + image) * width,
        latent_numbers=image * config["in_channels"] * config["patch_size"] ** 2,
        conditioning_numbers=text * config["joint_attention_dim"] + config["pooled_projection_dim"],
        lora_targets=ATTENTION_TARGETS,
    )


def sd3_transformer(config: Numbers, *, text: int, image: int) -> Network:
    """Return the transformer on `text` and `image` tokens."""
    heads = Heads(config["num_attention_heads"], config["attention_head_dim"])
    width, blocks, patch = heads.width, config["num_layers"], config["patch_size"] ** 2
    embedders = {"timestep_embedder": TIME_CHANNELS, "text_embedder": config["pooled_projection_dim"]}
    layers = [
        *condition_embedders("time_text_embed", embedders, width),
        linear("pos_embed.proj", patch * config["in_channels"], width, rows=image, stage=0),
        linear("context_embedder", config["joint_attention_dim"], width, rows=text, stage=0),
    ]
    stage = _FIRST_BLOCK_STAGE
    for block in range(blocks):
        is_dual = block in config.get("dual_attention_layers", ())
        layers += _block(config, heads, text=text, image=image, stage=stage, block=block, is_dual=is_dual)
        stage += 4
    channels = config.get("out_channels") or config["in_channels"]
    layers += last_layers(width, patch * channels, rows=image, stage=stage)
    return Network(layers, boundaries=blocks * (text + image) * width)


def _block(
    config: Numbers, heads: Heads, *, text: int, image: int, block: int, stage: int, is_dual: bool
) -> list[Layer]:
    """Return a block; the last one makes nothing of the text, and in some the picture also attends to itself alone."""
    normed = config.get("qk_norm") is not None
    picture, words = flux_streams(text=text, image=image, head_norms=normed)
    if is_dual:
        # both scales multiply the same normed input, and there is one output more
        picture = replace(picture, parts=9, products=5)
    if block == config["num_layers"] - 1:
        words = replace(words, parts=2, products=1, out="", feed="")
    layers = two_stream_block(heads, (picture, words), block=block, stage=stage)
    if is_dual:
        layers += _own_attention(heads, rows=image, block=block, stage=stage, normed=normed)
    return layers


def _own_attention(heads: Heads, *, rows: int, block: int, stage: int, normed: bool) -> list[Layer]:
    width = heads.width
    layers = [
        linear(f"attn2.{name}", width, width, rows=rows, block=block, stage=stage, source="norm1 again")
        for name in ("to_q", "to_k", "to_v")
    ]
    if normed:
        norms = ("attn2.norm_q", "attn2.norm_k")
        layers += [head_norm(name, heads, rows=rows, block=block, stage=stage + 1) for name in norms]
    layers += [
        attention("attn2", heads=heads.count, head_width=heads.size, rows=rows, block=block, stage=stage + 1),
        linear("attn2.to_out.0", width, width, rows=rows, block=block, stage=stage + 1, source="=attention"),
    ]
    # in the first block no token has met another before: what the joint attention trains does not come through here
    return [replace(layer, chain="apart") for layer in layers] if block == 0 else layers
