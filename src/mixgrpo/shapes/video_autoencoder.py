"""`AutoencoderKLQwenImage`, an autoencoder of videos, on one picture: a video of one frame.

Its convolutions look back in time, at frames of zeros here, but cost as much as if there were some.
"""

from collections.abc import Iterator

from mixgrpo.shapes.files import Numbers
from mixgrpo.shapes.layers import Kept, Layer, Network, attention, convolution
from mixgrpo.shapes.shape import ImageSize

_COLOURS = 3
_SET_ASIDE = ("conv_in", "conv1", "conv2", "conv_out")
"""Convolutions whose input is kept for the next frame."""


def video_autoencoder_parts(config: Numbers, size: ImageSize) -> tuple[Network, Network]:
    """Return encoder and decoder of one picture of `size`."""
    return Network(list(_encoder(config, size))), Network(list(_decoder(config, size)))


def video_decoder_peak(config: Numbers, size: ImageSize) -> int:
    """Return the most numbers alive at once while one picture is decoded.

    That is at the end, when every convolution over time has set aside a copy of its input for a frame that never comes.
    The last residual block then also holds its input, and what goes into its second convolution and comes out of it.
    """
    wide = size.height * size.width * config["base_dim"] * config["dim_mult"][0]
    set_aside = (layer.keeps_if_trained.plain for layer in _decoder(config, size) if layer.name in _SET_ASIDE)
    return sum(set_aside) + 6 * wide


def _decoder(config: Numbers, size: ImageSize) -> Iterator[Layer]:
    channels = [config["base_dim"] * times for times in reversed(config["dim_mult"])]
    pixels = _cells(config, size)
    yield _over_time("post_quant_conv", config["z_dim"], config["z_dim"], kernel=1, pixels=pixels)
    yield _over_time("conv_in", config["z_dim"], channels[0], kernel=3, pixels=pixels)
    yield from _middle(channels[0], pixels)
    width = channels[0]
    for index, outputs in enumerate(channels):
        for _ in range(config["num_res_blocks"] + 1):
            yield from _residual(width, outputs, pixels)
            width = outputs
        if index < len(channels) - 1:
            pixels *= 4
            if config["temperal_downsample"][::-1][index]:
                yield _time_convolution(width, 2 * width)
            yield convolution("upsample", width, width // 2, kernel=3, pixels=pixels)
            width //= 2
    yield _norm(width)
    yield _over_time("conv_out", width, _COLOURS, kernel=3, pixels=pixels)


def _encoder(config: Numbers, size: ImageSize) -> Iterator[Layer]:
    pixels, width = size.height * size.width, config["base_dim"]
    yield _over_time("conv_in", _COLOURS, width, kernel=3, pixels=pixels)
    for index, times in enumerate(config["dim_mult"]):
        outputs = config["base_dim"] * times
        for _ in range(config["num_res_blocks"]):
            yield from _residual(width, outputs, pixels)
            width = outputs
        if index < len(config["dim_mult"]) - 1:
            pixels //= 4
            yield convolution("downsample", width, width, kernel=3, pixels=pixels)
            if config["temperal_downsample"][index]:
                yield _time_convolution(width, width)
    yield from _middle(width, pixels)
    yield _norm(width)
    yield _over_time("conv_out", width, 2 * config["z_dim"], kernel=3, pixels=pixels)
    yield _over_time("quant_conv", 2 * config["z_dim"], 2 * config["z_dim"], kernel=1, pixels=pixels)


def _cells(config: Numbers, size: ImageSize) -> int:
    factor = 2 ** len(config["temperal_downsample"])
    return (size.height // factor) * (size.width // factor)


def _over_time(name: str, inputs: int, outputs: int, *, kernel: int, pixels: int) -> Layer:
    """Return a convolution over time, rows and columns."""
    return Layer(
        name=name,
        parameters=(inputs * kernel**3 + 1) * outputs,
        operations=2 * pixels * inputs * kernel**3 * outputs,
        keeps_if_trained=Kept(plain=inputs * pixels),
    )


def _time_convolution(inputs: int, outputs: int) -> Layer:
    """Return a convolution over three frames alone, which one frame goes around."""
    return Layer(name="time_conv", parameters=(3 * inputs + 1) * outputs)


def _norm(width: int) -> Layer:
    return Layer(name="norm", parameters=width)


def _residual(inputs: int, outputs: int, pixels: int) -> Iterator[Layer]:
    if inputs != outputs:
        yield _over_time("conv_shortcut", inputs, outputs, kernel=1, pixels=pixels)
    yield _norm(inputs)
    yield _over_time("conv1", inputs, outputs, kernel=3, pixels=pixels)
    yield _norm(outputs)
    yield _over_time("conv2", outputs, outputs, kernel=3, pixels=pixels)


def _middle(width: int, pixels: int) -> Iterator[Layer]:
    yield from _residual(width, width, pixels)
    yield _norm(width)
    yield convolution("to_qkv", width, 3 * width, kernel=1, pixels=pixels)
    yield attention("attention", heads=1, head_width=width, rows=pixels)
    yield convolution("proj", width, width, kernel=1, pixels=pixels)
    yield from _residual(width, width, pixels)
