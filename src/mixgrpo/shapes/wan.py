"""Wan 2.1 and 2.2 text-to-video: `WanTransformer3DModel`, one or two, with UMT5 and an `AutoencoderKLWan`."""

from math import prod

from mixgrpo.shapes.blocks import Heads, activation, condition_embedders, feed_forward, layer_norm, products, rms_norm
from mixgrpo.shapes.files import ModelFiles, Numbers
from mixgrpo.shapes.layers import Chain, Layer, Network, attention, linear
from mixgrpo.shapes.shape import ImageSize, Shape
from mixgrpo.shapes.text import t5_encoder
from mixgrpo.shapes.video_autoencoder import latent_frames, video_autoencoder_parts, video_decoder_peak

LORA_TARGETS: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
"""Both attentions: of the clip with itself, and with the text."""

_FORWARD_PEAK = 10
"""Numbers alive at once in a forward pass, per token of the clip and channel, as measured: 8 to 11."""
_BACKWARD_PEAK = 4
"""The same in a backward pass, besides what was kept."""
_FIRST_BLOCK_STAGE = 3
"""Stage of the first block's first layers; embedders and modulation come before."""
_TEXT_STAGE = 2
"""Stage of the layers that read the text in a cross-attention: in all blocks they follow the text embedder."""


def wan_shape(files: ModelFiles, size: ImageSize) -> Shape:
    """Return the shape of a Wan model. Of two transformers one runs at a time, and both are trained."""
    config, vae, reader = files.parts["transformer"], files.parts["vae"], files.parts["text_encoder"]
    factor = vae.get("scale_factor_spatial", 8)
    cells = (latent_frames(vae, size), size.height // factor, size.width // factor)
    clip = prod(side // patch for side, patch in zip(cells, config["patch_size"], strict=True))
    text, width = size.max_sequence_length, config["num_attention_heads"] * config["attention_head_dim"]
    has_two = files.index.get("boundary_ratio") is not None
    encoder, decoder = video_autoencoder_parts(vae, size)
    return Shape(
        source=files.source,
        transformer=wan_transformer(config, text=text, clip=clip),
        transformer_2=wan_transformer(files.parts["transformer_2"], text=text, clip=clip) if has_two else None,
        passes=2 if size.guidance_scale > 1.0 else 1,
        text_encoders=(t5_encoder(reader, text, biases=reader["num_layers"]),),
        decoder=decoder,
        vae_in_float32=True,
        decoder_peak=video_decoder_peak(vae, size),
        other_parameters=encoder.parameters,
        tokens=text + clip,
        forward_peak=_FORWARD_PEAK * clip * width,
        backward_peak=_BACKWARD_PEAK * clip * width,
        latent_numbers=prod(cells) * config["in_channels"],
        conditioning_numbers=text * config["text_dim"],
        lora_targets=LORA_TARGETS,
    )


def wan_transformer(config: Numbers, *, text: int, clip: int) -> Network:
    """Return the transformer on `text` tokens and `clip` tokens of the clip."""
    heads = Heads(config["num_attention_heads"], config["attention_head_dim"])
    width, blocks, patch = heads.width, config["num_layers"], prod(config["patch_size"])
    embedder = "condition_embedder"
    layers = [
        *condition_embedders(embedder, {"time_embedder": config["freq_dim"]}, width),
        linear(f"{embedder}.time_proj", width, 6 * width, chain="condition", stage=2),
        linear(f"{embedder}.text_embedder.linear_1", config["text_dim"], width, rows=text, chain="apart", stage=0),
        activation(f"{embedder}.text_embedder.act_1", width, rows=text, block=-1, stage=1, chain="apart"),
        linear(f"{embedder}.text_embedder.linear_2", width, width, rows=text, chain="apart", stage=1),
        linear("patch_embedding", patch * config["in_channels"], width, rows=clip, stage=0),
    ]
    stage = _FIRST_BLOCK_STAGE
    for block in range(blocks):
        layers += _block(config, heads, text=text, clip=clip, block=block, stage=stage)
        stage += 6
    layers += [
        products(width, rows=clip, block=-1, plain=0, wide=1, parameters=2 * width),
        layer_norm("norm_out", width, rows=clip, block=-1, stage=stage),
        linear(
            "proj_out", width, patch * (config.get("out_channels") or config["in_channels"]), rows=clip, stage=stage
        ),
    ]
    return Network(layers, boundaries=(blocks * clip + text) * width)


def _block(config: Numbers, heads: Heads, *, text: int, clip: int, block: int, stage: int) -> list[Layer]:
    """Return a block: the clip attends to itself, then to the text, which stays as it is. It takes six stages."""
    width = heads.width
    return [
        # two normed inputs and the output of the last layer, in float32, and the attention's
        products(width, rows=clip, block=block, plain=1, wide=3, parameters=6 * width),
        layer_norm("norm1", width, rows=clip, block=block, stage=stage),
        *_attention("attn1", heads, rows=clip, block=block, stage=stage),
        layer_norm("norm2", width, rows=clip, block=block, stage=stage + 2, affine=config.get("cross_attn_norm", True)),
        *_attention("attn2", heads, rows=clip, text=text, block=block, stage=stage + 2),
        layer_norm("norm3", width, rows=clip, block=block, stage=stage + 4),
        *feed_forward("ffn", width, hidden=config["ffn_dim"], rows=clip, block=block, stage=stage + 4),
    ]


def _attention(name: str, heads: Heads, *, rows: int, block: int, stage: int, text: int = 0) -> list[Layer]:
    """Return an attention of `rows` tokens with each other, or with those of the text. It takes two stages."""
    width, source = heads.width, f"{name}'s input"
    chain: Chain = "apart" if text else "tokens"
    early = _TEXT_STAGE if text else stage
    return [
        linear(f"{name}.to_q", width, width, rows=rows, block=block, stage=stage, source=source),
        *(
            linear(
                f"{name}.{part}",
                width,
                width,
                rows=text or rows,
                chain=chain,
                block=block,
                stage=early,
                source="*text" if text else source,
            )
            for part in ("to_k", "to_v")
        ),
        rms_norm(f"{name}.norm_q", width, rows=rows, block=block, stage=stage + 1),
        rms_norm(f"{name}.norm_k", width, rows=text or rows, block=block, stage=early + 1, chain=chain),
        attention(
            name, heads=heads.count, head_width=heads.size, rows=rows, keys=text or rows, block=block, stage=stage + 1
        ),
        linear(f"{name}.to_out.0", width, width, rows=rows, block=block, stage=stage + 1, source="=attention"),
    ]
