"""Z-Image: `ZImageTransformer2DModel` with Qwen3 as text encoder and an `AutoencoderKL`."""

from mixgrpo.shapes.autoencoder import autoencoder_parts, decoder_peak
from mixgrpo.shapes.blocks import Heads, gated_activation, head_norm, layer_norm, modulation, rms_norm
from mixgrpo.shapes.files import ModelFiles, Numbers
from mixgrpo.shapes.layers import Chain, Kept, Layer, Network, attention, linear
from mixgrpo.shapes.shape import ImageSize, Shape
from mixgrpo.shapes.text import language_model

LORA_TARGETS: tuple[str, ...] = (
    "attention.to_q",
    "attention.to_k",
    "attention.to_v",
    "attention.to_out.0",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
)
"""Attention and feed-forward layers of all blocks."""

PATCH = 2
"""Side of a token, in cells."""
_MULTIPLE = 32
"""Numbers of tokens are made multiples of this, those of the text and those of the picture."""
_TIME_CHANNELS = 256
_TIME_HIDDEN = 1024
_FORWARD_PEAK = 17
"""Numbers alive at once in a forward pass, per token and channel, as measured."""
_BACKWARD_PEAK = 4
"""The same in a backward pass, besides what was kept: 0 to 7."""
_FIRST_BLOCK_STAGE = 2
"""Stage of the first block's first layers; the embedders come before."""


def z_image_shape(files: ModelFiles, size: ImageSize) -> Shape:
    """Return the shape of a Z-Image model. Prompts are reckoned as long as they may be, the negative prompt too."""
    config, vae = files.parts["transformer"], files.parts["vae"]
    side = PATCH * 2 ** (len(vae["block_out_channels"]) - 1)
    patches = (size.height // side) * (size.width // side)
    image, text = _whole(patches), _whole(size.max_sequence_length)
    width = config["dim"]
    encoder, decoder = autoencoder_parts(vae, size)
    return Shape(
        source=files.source,
        transformer=z_image_transformer(config, text=text, image=image),
        passes=2 if size.guidance_scale > 0.0 else 1,
        text_encoders=(
            language_model(files.parts["text_encoder"], size.max_sequence_length, head_norms=True, writes=False),
        ),
        decoder=decoder,
        decoder_peak=decoder_peak(vae, size),
        other_parameters=encoder.parameters,
        tokens=text + image,
        forward_peak=_FORWARD_PEAK * (text + image) * width,
        backward_peak=_BACKWARD_PEAK * (text + image) * width,
        latent_numbers=patches * config["in_channels"] * PATCH**2,
        conditioning_numbers=size.max_sequence_length * config["cap_feat_dim"],
        lora_targets=LORA_TARGETS,
    )


def z_image_transformer(config: Numbers, *, text: int, image: int) -> Network:
    """Return the transformer on `text` and `image` tokens, multiples of 32 both.

    Some blocks refine the picture and some the text, before they become one row of tokens.
    """
    width, refiners, blocks = config["dim"], config["n_refiner_layers"], config["n_layers"]
    vector, channels, words = min(width, _TIME_CHANNELS), PATCH**2 * config["in_channels"], config["cap_feat_dim"]
    layers = [
        linear("t_embedder.mlp.0", _TIME_CHANNELS, _TIME_HIDDEN, chain="condition", stage=0),
        linear("t_embedder.mlp.2", _TIME_HIDDEN, vector, chain="condition", stage=1),
        linear("all_x_embedder", channels, width, rows=image, stage=0),
        Layer(name="pad_tokens", parameters=2 * width),
        Layer(name="cap_embedder.0", parameters=words, chain="apart", keeps_if_trained=Kept(wide=text * (words + 1))),
        linear("cap_embedder.1", words, width, rows=text, chain="apart", stage=1),
    ]
    stage = _FIRST_BLOCK_STAGE
    for block in range(refiners):
        layers += _block(config, rows=image, block=block, stage=stage)
        layers += _block(config, rows=text, block=refiners + block, stage=stage, chain="apart")
        stage += 4
    for block in range(2 * refiners, 2 * refiners + blocks):
        layers += _block(config, rows=text + image, block=block, stage=stage)
        stage += 4
    layers += [
        modulation(
            "all_final_layer.adaLN_modulation.1",
            width,
            parts=1,
            rows=text + image,
            block=-1,
            products=1,
            inputs=vector,
        ),
        layer_norm("all_final_layer.norm_final", width, rows=text + image, block=-1, stage=stage),
        linear("all_final_layer.linear", width, channels, rows=text + image, stage=stage),
    ]
    return Network(layers, boundaries=(refiners + blocks) * (text + image) * width)


def _block(config: Numbers, *, rows: int, block: int, stage: int, chain: Chain = "tokens") -> list[Layer]:
    """Return a block; those that refine the text know nothing of the time. It takes four stages."""
    width, hidden = config["dim"], int(config["dim"] / 3 * 8)
    heads = Heads(config["n_heads"], width // config["n_heads"])

    def norm(name: str, later: int) -> Layer:
        return rms_norm(name, width, rows=rows, block=block, stage=stage + later, chain=chain)

    def projection(name: str, inputs: int, outputs: int, later: int, source: str = "") -> Layer:
        return linear(
            name,
            inputs,
            outputs,
            rows=rows,
            bias=False,
            chain=chain,
            block=block,
            stage=stage + later,
            source=source,
        )

    layers = [
        norm("attention_norm1", 0),
        *(projection(f"attention.{name}", width, width, 0, "normed") for name in ("to_q", "to_k", "to_v")),
        attention(
            "attention", heads=heads.count, head_width=heads.size, rows=rows, chain=chain, block=block, stage=stage + 1
        ),
        projection("attention.to_out.0", width, width, 1, "=attention"),
        norm("attention_norm2", 2),
        norm("ffn_norm1", 2),
        *(projection(f"feed_forward.{name}", width, hidden, 2, "normed again") for name in ("w1", "w3")),
        gated_activation("feed_forward", hidden, rows=rows, block=block, stage=stage + 3, chain=chain),
        projection("feed_forward.w2", hidden, width, 3),
        norm("ffn_norm2", 4),
    ]
    if config.get("qk_norm", True):
        norms = ("attention.norm_q", "attention.norm_k")
        layers += [head_norm(name, heads, rows=rows, block=block, stage=stage + 1, chain=chain) for name in norms]
    if chain == "tokens":
        # kept for the conditioning's gradient: two normed inputs (scales) and two normed outputs (gates)
        vector = min(width, _TIME_CHANNELS)
        layers.append(
            modulation("adaLN_modulation.0", width, parts=4, rows=rows, block=block, products=4, inputs=vector)
        )
    return layers


def _whole(tokens: int) -> int:
    return -(-tokens // _MULTIPLE) * _MULTIPLE
