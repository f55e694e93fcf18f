"""Qwen-Image: `QwenImageTransformer2DModel` with Qwen2.5-VL as text encoder and an autoencoder of videos."""

from mixgrpo.shapes.blocks import (
    ATTENTION_TARGETS,
    TIME_CHANNELS,
    Heads,
    Stream,
    last_layers,
    picture_stream,
    text_stream,
    two_stream_block,
    unread_after_attention,
)
from mixgrpo.shapes.files import ModelFiles, Numbers
from mixgrpo.shapes.layers import Kept, Layer, Network, linear
from mixgrpo.shapes.shape import ImageSize, Shape
from mixgrpo.shapes.text import language_model, qwen_vl_eyes
from mixgrpo.shapes.video_autoencoder import video_autoencoder_parts, video_decoder_peak

LORA_TARGETS: tuple[str, ...] = (
    *ATTENTION_TARGETS,
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "txt_mlp.net.0.proj",
    "txt_mlp.net.2",
)
"""Attention and feed-forward layers of both streams."""

_CHAT_HEAD = 34
"""Tokens before a prompt, which are encoded and then cut off."""
_FORWARD_PEAK = 15
"""Numbers alive at once in a forward pass, per token and channel, as measured: 13 to 15, with adapters 16 to 18."""
_BACKWARD_PEAK = 4
"""The same in a backward pass, besides what was kept. Measured 2 to 4 when every weight is trained, with checkpointing
-2 to 1, and 4 to 8 with adapters; what was kept is 60 to 100 without checkpointing and 25 to 30 with it."""
_FIRST_BLOCK_STAGE = 2
"""Stage of the first block's first layers; the embedders come before."""


def qwen_image_shape(files: ModelFiles, size: ImageSize) -> Shape:
    """Return the shape of a Qwen-Image model. Latents are packed 2 x 2 into tokens.

    Prompts have a length of their own; they are reckoned as long as they may be, the negative prompt too.
    """
    config, vae, reader = files.parts["transformer"], files.parts["vae"], files.parts["text_encoder"]
    factor = 2 ** len(vae["temperal_downsample"])
    image = (size.height // (2 * factor)) * (size.width // (2 * factor))
    text = size.max_sequence_length
    width = config["num_attention_heads"] * config["attention_head_dim"]
    encoder, decoder = video_autoencoder_parts(vae, size)
    return Shape(
        source=files.source,
        transformer=qwen_image_transformer(config, text=text, image=image),
        passes=2 if size.guidance_scale > 1.0 else 1,
        text_encoders=(language_model(reader, _CHAT_HEAD + text, bias=True, writes=True),),
        decoder=decoder,
        decoder_peak=video_decoder_peak(vae, size),
        other_parameters=encoder.parameters + qwen_vl_eyes(reader).parameters,
        tokens=text + image,
        forward_peak=_FORWARD_PEAK * (text + image) * width,
        backward_peak=_BACKWARD_PEAK * (text + image) * width,
        latent_numbers=image * config["in_channels"],
        conditioning_numbers=text * config["joint_attention_dim"],
        lora_targets=LORA_TARGETS,
    )


def qwen_image_transformer(config: Numbers, *, text: int, image: int) -> Network:
    """Return the transformer on `text` and `image` tokens. Nothing reads what its last block makes of the text."""
    heads = Heads(config["num_attention_heads"], config["attention_head_dim"])
    width, words = heads.width, config["joint_attention_dim"]
    streams = _streams(text=text, image=image)
    layers = [
        linear("time_text_embed.timestep_embedder.linear_1", TIME_CHANNELS, width, chain="condition", stage=0),
        linear("time_text_embed.timestep_embedder.linear_2", width, width, chain="condition", stage=1),
        linear("img_in", config["in_channels"], width, rows=image, stage=0),
        Layer(name="txt_norm", parameters=words, keeps_if_trained=Kept(wide=text * (words + 1))),
        linear("txt_in", words, width, rows=text, stage=1),
    ]
    stage = _FIRST_BLOCK_STAGE
    for block in range(config["num_layers"]):
        built = two_stream_block(heads, streams, block=block, stage=stage)
        layers += unread_after_attention(built, streams[1]) if block == config["num_layers"] - 1 else built
        stage += 4
    patch = config["patch_size"] ** 2
    channels = config["out_channels"] or config["in_channels"]
    layers += last_layers(width, patch * channels, rows=image, stage=stage)
    return Network(layers, boundaries=config["num_layers"] * (text + image) * width)


def _streams(*, text: int, image: int) -> tuple[Stream, Stream]:
    return (
        picture_stream(rows=image, modulation="img_mod.1", norms=("img_norm1", "img_norm2"), feed="img_mlp"),
        text_stream(rows=text, modulation="txt_mod.1", norms=("txt_norm1", "txt_norm2"), feed="txt_mlp"),
    )
