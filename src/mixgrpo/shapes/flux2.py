"""FLUX.2: `Flux2Transformer2DModel` with Mistral 3 (dev) or Qwen3 (klein) and an `AutoencoderKLFlux2`."""

from mixgrpo.shapes.autoencoder import autoencoder_parts, decoder_peak
from mixgrpo.shapes.blocks import (
    ATTENTION_TARGETS,
    Heads,
    condition_embedders,
    gated_activation,
    head_norm,
    joint_attention,
    last_layers,
    layer_norm,
    modulation,
    picture_stream,
    products,
    text_stream,
    two_stream_block,
)
from mixgrpo.shapes.files import ModelFiles, Numbers
from mixgrpo.shapes.layers import Layer, Network, linear
from mixgrpo.shapes.shape import ImageSize, Shape
from mixgrpo.shapes.text import language_model, mistral3_eyes

_LORA_TARGETS = (
    *ATTENTION_TARGETS,
    "ff.linear_in",
    "ff.linear_out",
    "ff_context.linear_in",
    "ff_context.linear_out",
    "attn.to_qkv_mlp_proj",
)
_FORWARD_PEAK = 25
"""Numbers alive at once in a forward pass, per token and channel: 22 as measured, and 30 with adapters, which make what
comes out of a one-stream block's first layer a second time."""
_BACKWARD_PEAK = 10
"""The same in a backward pass, besides what was kept: 8 to 13 when every weight is trained, 11 to 16 with adapters."""
_FIRST_BLOCK_STAGE = 3
"""Stage of the first block's first layers; embedders and modulation come before."""


def lora_targets(config: Numbers) -> tuple[str, ...]:
    """Return the names of all of attention and feed-forward layers.

    The last layer of a one-stream block is named in full, since its name has no ending of its own: `attn.to_out` is a
    list of layers in the two-stream blocks.
    """
    return (*_LORA_TARGETS, *(_last_of_one_stream(block) for block in range(config["num_single_layers"])))


def flux2_shape(files: ModelFiles, size: ImageSize) -> Shape:
    """Return the shape of FLUX.2 dev."""
    reader = files.parts["text_encoder"]
    encoder = language_model(reader, size.max_sequence_length, writes=True, ties=True)
    return _shape(files, size, encoder, unused=mistral3_eyes(reader).parameters, passes=1)


def flux2_klein_shape(files: ModelFiles, size: ImageSize) -> Shape:
    """Return the shape of FLUX.2 klein; the distilled ones have no guidance, whatever the scale."""
    encoder = language_model(files.parts["text_encoder"], size.max_sequence_length, head_norms=True, writes=True)
    guided = size.guidance_scale > 1.0 and not files.index.get("is_distilled", False)
    return _shape(files, size, encoder, unused=0, passes=2 if guided else 1)


def _shape(files: ModelFiles, size: ImageSize, reader: Network, *, unused: int, passes: int) -> Shape:
    """Return the shape of a model. Latents are packed 2 x 2 into tokens, texts are padded to their longest."""
    config, vae = files.parts["transformer"], files.parts["vae"]
    side = 2 * 2 ** (len(vae["block_out_channels"]) - 1)
    image, text = (size.height // side) * (size.width // side), size.max_sequence_length
    width = config["num_attention_heads"] * config["attention_head_dim"]
    encoder, decoder = autoencoder_parts(vae, size)
    return Shape(
        source=files.source,
        transformer=flux2_transformer(config, text=text, image=image),
        passes=passes,
        text_encoders=(reader,),
        decoder=decoder,
        decoder_peak=decoder_peak(vae, size),
        other_parameters=encoder.parameters + unused,
        tokens=text + image,
        forward_peak=_FORWARD_PEAK * (text + image) * width,
        backward_peak=_BACKWARD_PEAK * (text + image) * width,
        latent_numbers=image * config["in_channels"],
        conditioning_numbers=text * config["joint_attention_dim"],
        lora_targets=lora_targets(config),
    )


def flux2_transformer(config: Numbers, *, text: int, image: int) -> Network:
    """Return the transformer on `text` and `image` tokens. Nothing in it has a bias."""
    heads = Heads(config["num_attention_heads"], config["attention_head_dim"])
    width, two, one = heads.width, config["num_layers"], config["num_single_layers"]
    ratio = config.get("mlp_ratio", 3.0)

    def feed(name: str, width: int, *, rows: int, block: int, stage: int) -> list[Layer]:
        hidden = int(width * ratio)
        return [
            linear(f"{name}.linear_in", width, 2 * hidden, rows=rows, bias=False, block=block, stage=stage),
            gated_activation(f"{name}.act_fn", hidden, rows=rows, block=block, stage=stage + 1),
            linear(f"{name}.linear_out", hidden, width, rows=rows, bias=False, block=block, stage=stage + 1),
        ]

    streams = (
        picture_stream(rows=image, modulation="", norms=("norm1", "norm2"), feed="ff", bias=False),
        text_stream(rows=text, modulation="", norms=("norm1_context", "norm2_context"), feed="ff_context", bias=False),
    )
    layers = [
        *_condition(config, width),
        linear("x_embedder", config["in_channels"], width, rows=image, bias=False, stage=0),
        linear("context_embedder", config["joint_attention_dim"], width, rows=text, bias=False, stage=0),
    ]
    stage = _FIRST_BLOCK_STAGE
    for block in range(two):
        layers += two_stream_block(heads, streams, block=block, stage=stage, feed=feed)
        stage += 4
    for index in range(one):
        layers += _one_stream_block(heads, int(width * ratio), rows=text + image, index=index, first=two, stage=stage)
        stage += 3
    patch = config.get("patch_size", 1) ** 2
    channels = config.get("out_channels") or config["in_channels"]
    layers += last_layers(width, patch * channels, rows=image, stage=stage, bias=False)
    return Network(layers, boundaries=(two + one) * (text + image) * width)


def _condition(config: Numbers, width: int) -> list[Layer]:
    """Return the embedders of time and guidance, and what makes shifts, scales and gates for all blocks of a kind."""
    channels = config.get("timestep_guidance_channels", 256)
    names = (
        ("timestep_embedder", "guidance_embedder") if config.get("guidance_embeds", True) else ("timestep_embedder",)
    )
    parts = {"double_stream_modulation_img": 6, "double_stream_modulation_txt": 6, "single_stream_modulation": 3}
    return [
        *condition_embedders("time_guidance_embed", dict.fromkeys(names, channels), width, bias=False),
        *(
            modulation(f"{name}.linear", width, parts=number, rows=0, block=-1, products=0, bias=False)
            for name, number in parts.items()
        ),
    ]


def _one_stream_block(heads: Heads, hidden: int, *, rows: int, index: int, first: int, stage: int) -> list[Layer]:
    """Return a block that takes all tokens alike, its feed-forward layers in one with the projections."""
    width, block = heads.width, first + index
    wide = 3 * width + 2 * hidden
    return [
        products(width, rows=rows, block=block, plain=2),
        layer_norm("norm", width, rows=rows, block=block, stage=stage),
        linear("attn.to_qkv_mlp_proj", width, wide, rows=rows, bias=False, block=block, stage=stage),
        gated_activation("attn.mlp_act_fn", hidden, rows=rows, block=block, stage=stage + 1),
        *(head_norm(f"attn.{name}", heads, rows=rows, block=block, stage=stage + 1) for name in ("norm_q", "norm_k")),
        joint_attention(heads, rows=rows, block=block, stage=stage + 1),
        linear(_last_of_one_stream(index), width + hidden, width, rows=rows, bias=False, block=block, stage=stage + 2),
    ]


def _last_of_one_stream(index: int) -> str:
    return f"single_transformer_blocks.{index}.attn.to_out"
