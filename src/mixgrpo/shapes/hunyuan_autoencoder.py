"""`AutoencoderKLHunyuanVideo`, from its config file: an autoencoder of videos that decodes many frames at once.

Clips of more than 17 frames are decoded in pieces of that many, which overlap.
"""

from collections.abc import Iterator
from math import log2

from mixgrpo.shapes.files import Numbers
from mixgrpo.shapes.layers import Layer, Network, attention, linear
from mixgrpo.shapes.shape import ImageSize

_COLOURS = 3
_PIECE = 16
"""Frames of a piece, besides its first."""
_STEP = 12
"""Frames from the beginning of a piece to that of the next."""


def hunyuan_latent(config: Numbers, size: ImageSize) -> tuple[int, int, int]:
    """Return frames, rows and columns of a clip's latent."""
    factor = config["spatial_compression_ratio"]
    frames = (size.num_frames - 1) // config["temporal_compression_ratio"] + 1
    return frames, size.height // factor, size.width // factor


def hunyuan_autoencoder_parts(config: Numbers, size: ImageSize) -> tuple[Network, Network]:
    """Return encoder and decoder of one clip of `size`; of the encoder only the parameters are meant."""
    return Network(list(_encoder(config))), Network(list(_decoder(config, size)))


def hunyuan_decoder_peak(config: Numbers, size: ImageSize) -> int:
    """Return the most numbers alive at once while one clip is decoded.

    That is at full size, in the last upsampling or in the first or last residual block after it. Or it is the mask of
    the attention, which has a number for each pair of cells of a piece.
    """
    channels = config["block_out_channels"]
    inputs, outputs = channels[min(1, len(channels) - 1)], channels[0]
    longest = max(_pieces(config, size))
    frames = (longest - 1) * config["temporal_compression_ratio"] + 1
    padded, whole = frames + 2, frames if frames > 1 else 0
    upsampling = inputs * (whole + 2 * frames + padded)
    first = inputs * (2 * frames + padded) + outputs * frames
    last = inputs * frames + outputs * (3 * frames + padded)
    decoded = config["out_channels"] * (size.num_frames - 1)
    features = size.height * size.width * (max(upsampling, first, last) + decoded)
    _, rows, columns = hunyuan_latent(config, size)
    pairs = (longest * rows * columns) ** 2
    # the mask, and in a quarter of its bytes where it is open
    return max(features, pairs + pairs // 4)


def _pieces(config: Numbers, size: ImageSize) -> list[int]:
    """Return how many frames of the latent are decoded together, for each piece of it."""
    times = config["temporal_compression_ratio"]
    frames = hunyuan_latent(config, size)[0]
    piece, step = _PIECE // times, _STEP // times
    if frames <= piece:
        return [frames]
    return [min(piece + 1, frames - start) for start in range(0, frames, step)]


def _decoder(config: Numbers, size: ImageSize) -> Iterator[Layer]:
    channels, latent = config["block_out_channels"][::-1], config["latent_channels"]
    _, rows, columns = hunyuan_latent(config, size)
    pixels, frames = rows * columns, _pieces(config, size)
    yield _convolution("post_quant_conv", latent, latent, kernel=1, cells=sum(frames) * pixels)
    yield _convolution("conv_in", latent, channels[0], kernel=3, cells=sum(frames) * pixels)
    yield from _middle(config, channels[0], pixels, frames)
    width = channels[0]
    for index, outputs in enumerate(channels):
        for _ in range(config["layers_per_block"] + 1):
            yield from _residual(width, outputs, sum(frames) * pixels)
            width = outputs
        wider, longer = _scales(config, index)
        if wider or longer:
            pixels *= 4 if wider else 1
            frames = [2 * number - 1 if longer else number for number in frames]
            yield _convolution("upsample", width, width, kernel=3, cells=sum(frames) * pixels)
    yield _norm(width)
    yield _convolution("conv_out", width, config["out_channels"], kernel=3, cells=sum(frames) * pixels)


def _encoder(config: Numbers) -> Iterator[Layer]:
    channels, latent = config["block_out_channels"], config["latent_channels"]
    width = channels[0]
    yield _convolution("conv_in", config["in_channels"], width, kernel=3)
    for index, outputs in enumerate(channels):
        for _ in range(config["layers_per_block"]):
            yield from _residual(width, outputs, 0)
            width = outputs
        if any(_scales(config, index)):
            yield _convolution("downsample", width, width, kernel=3)
    yield from _middle(config, width, 0, [])
    yield _norm(width)
    yield _convolution("conv_out", width, 2 * latent, kernel=3)
    yield _convolution("quant_conv", 2 * latent, 2 * latent, kernel=1)


def _scales(config: Numbers, index: int) -> tuple[bool, bool]:
    """Return whether a block doubles, or halves, rows and columns, and whether frames."""
    last = len(config["block_out_channels"]) - 1
    longer = last > index >= last - int(log2(config["temporal_compression_ratio"]))
    return index < int(log2(config["spatial_compression_ratio"])), longer


def _convolution(name: str, inputs: int, outputs: int, *, kernel: int, cells: int = 0) -> Layer:
    """Return a convolution over time, rows and columns that puts out `cells` cells."""
    return Layer(
        name=name,
        parameters=(inputs * kernel**3 + 1) * outputs,
        operations=2 * cells * inputs * kernel**3 * outputs,
    )


def _norm(width: int) -> Layer:
    return Layer(name="norm", parameters=2 * width)


def _residual(inputs: int, outputs: int, cells: int) -> Iterator[Layer]:
    yield _norm(inputs)
    yield _convolution("conv1", inputs, outputs, kernel=3, cells=cells)
    yield _norm(outputs)
    yield _convolution("conv2", outputs, outputs, kernel=3, cells=cells)
    if inputs != outputs:
        yield _convolution("conv_shortcut", inputs, outputs, kernel=1, cells=cells)


def _middle(config: Numbers, width: int, pixels: int, frames: list[int]) -> Iterator[Layer]:
    """Return the widest blocks, between them an attention of a piece's frames with those before them."""
    cells = sum(frames) * pixels
    yield from _residual(width, width, cells)
    if config.get("mid_block_add_attention", True):
        yield _norm(width)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            yield linear(name, width, width, rows=cells)
        for number in frames:
            yield attention("attention", heads=1, head_width=width, rows=number * pixels)
    yield from _residual(width, width, cells)
