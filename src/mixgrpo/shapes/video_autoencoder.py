"""`AutoencoderKLWan` and `AutoencoderKLQwenImage`: autoencoders of videos, on one picture or a clip.

The first frame is one by itself, and further ones become one by fours; each is decoded after the other. Convolutions
look back in time, before the first frame at frames of zeros, which cost as much as any.
"""

from collections.abc import Iterator
from dataclasses import replace

from mixgrpo.shapes.files import Numbers
from mixgrpo.shapes.layers import Kept, Layer, Network, attention, convolution
from mixgrpo.shapes.shape import ImageSize

_COLOURS = 3
_SET_ASIDE = ("conv_in", "conv1", "conv2", "time_conv", "conv_out")
"""Convolutions whose last inputs are kept for the next frame."""
_FRAMES_BACK = 2
"""Frames that a convolution looks back."""


def latent_frames(config: Numbers, size: ImageSize) -> int:
    """Return the frames of a clip's latent."""
    return (size.num_frames - 1) // 2 ** sum(config["temperal_downsample"]) + 1


def video_autoencoder_parts(config: Numbers, size: ImageSize) -> tuple[Network, Network]:
    """Return encoder and decoder of one clip of `size`; of the encoder only the parameters are right for a clip."""
    return Network(list(_encoder(config, size))), Network(list(_decoder(config, size)))


def video_decoder_peak(config: Numbers, size: ImageSize) -> int:
    """Return the most numbers alive at once while one picture or clip is decoded.

    That is near the end, when every convolution over time has set aside its last inputs for frames that may never come,
    in a residual block at full size: the first one there, if it gets more channels than it makes, or the last one.
    """
    pixels = size.height * size.width // _patch(config) ** 2
    outputs = _decoder_width(config) * config["dim_mult"][0]
    is_residual, is_clip = config.get("is_residual", False), size.num_frames > 1
    before = _decoder_width(config) * config["dim_mult"][min(1, len(config["dim_mult"]) - 1)]
    inputs = before if is_residual else before // 2
    frames = 2 ** sum(config["temperal_downsample"]) if is_clip else 1
    held = inputs * (2 if is_residual else 1)
    # what goes into a convolution is padded by the frames before it, which a clip takes from what was set aside
    padded = (2 * (frames + _FRAMES_BACK) + _FRAMES_BACK) if is_clip else frames + _FRAMES_BACK
    shortcut = outputs if inputs != outputs else 0
    first = frames * (held + shortcut + inputs) + padded * inputs
    last = frames * (held + 2 * outputs) + padded * outputs
    set_aside = sum(layer.keeps_if_trained.plain for layer in _decoder(config, size) if layer.name in _SET_ASIDE)
    decoded = config.get("out_channels", _COLOURS) * (size.num_frames - 1)
    return set_aside + pixels * (max(first, last) + decoded)


def _decoder(config: Numbers, size: ImageSize) -> Iterator[Layer]:
    channels = [_decoder_width(config) * times for times in reversed(config["dim_mult"])]
    frames, pixels = latent_frames(config, size), _cells(config, size)
    grows, steps = not config.get("is_residual", False), config["temperal_downsample"][::-1]
    yield _over_time("post_quant_conv", config["z_dim"], config["z_dim"], kernel=1, pixels=pixels, frames=frames)
    yield _over_time("conv_in", config["z_dim"], channels[0], kernel=3, pixels=pixels, frames=frames)
    yield from _middle(channels[0], pixels, frames)
    width = channels[0]
    for index, outputs in enumerate(channels):
        for _ in range(config["num_res_blocks"] + 1):
            yield from _residual(width, outputs, pixels, frames)
            width = outputs
        if index < len(channels) - 1:
            if steps[index]:
                yield _time_convolution(width, 2 * width, pixels=pixels, frames=frames - 1)
                frames = 2 * frames - 1
            pixels *= 4
            narrow = width // 2 if grows else width
            yield convolution("upsample", width, narrow, kernel=3, pixels=frames * pixels)
            width = narrow
    yield _norm(width)
    colours = config.get("out_channels", _COLOURS)
    yield _over_time("conv_out", width, colours, kernel=3, pixels=pixels, frames=frames)


def _encoder(config: Numbers, size: ImageSize) -> Iterator[Layer]:
    pixels, width = size.height * size.width // _patch(config) ** 2, config["base_dim"]
    yield _over_time("conv_in", config.get("in_channels", _COLOURS), width, kernel=3, pixels=pixels)
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


def _patch(config: Numbers) -> int:
    return config.get("patch_size") or 1


def _decoder_width(config: Numbers) -> int:
    return config.get("decoder_base_dim") or config["base_dim"]


def _cells(config: Numbers, size: ImageSize) -> int:
    factor = _patch(config) * 2 ** len(config["temperal_downsample"])
    return (size.height // factor) * (size.width // factor)


def _over_time(name: str, inputs: int, outputs: int, *, kernel: int, pixels: int, frames: int = 1) -> Layer:
    """Return a convolution over time, rows and columns."""
    return Layer(
        name=name,
        parameters=(inputs * kernel**3 + 1) * outputs,
        operations=2 * frames * pixels * inputs * kernel**3 * outputs,
        keeps_if_trained=Kept(plain=min(frames, _FRAMES_BACK) * inputs * pixels),
    )


def _time_convolution(inputs: int, outputs: int, *, pixels: int = 0, frames: int = 0) -> Layer:
    """Return a convolution over three frames alone, which the first frame goes around."""
    return Layer(
        name="time_conv",
        parameters=(3 * inputs + 1) * outputs,
        operations=2 * frames * pixels * 3 * inputs * outputs,
        keeps_if_trained=Kept(plain=min(frames, 1) * _FRAMES_BACK * inputs * pixels),
    )


def _norm(width: int) -> Layer:
    return Layer(name="norm", parameters=width)


def _residual(inputs: int, outputs: int, pixels: int, frames: int = 1) -> Iterator[Layer]:
    if inputs != outputs:
        yield _over_time("conv_shortcut", inputs, outputs, kernel=1, pixels=pixels, frames=frames)
    yield _norm(inputs)
    yield _over_time("conv1", inputs, outputs, kernel=3, pixels=pixels, frames=frames)
    yield _norm(outputs)
    yield _over_time("conv2", outputs, outputs, kernel=3, pixels=pixels, frames=frames)


def _middle(width: int, pixels: int, frames: int = 1) -> Iterator[Layer]:
    yield from _residual(width, width, pixels, frames)
    yield _norm(width)
    yield convolution("to_qkv", width, 3 * width, kernel=1, pixels=frames * pixels)
    yield _each_frame(attention("attention", heads=1, head_width=width, rows=pixels), frames)
    yield convolution("proj", width, width, kernel=1, pixels=frames * pixels)
    yield from _residual(width, width, pixels, frames)


def _each_frame(layer: Layer, frames: int) -> Layer:
    return replace(layer, operations=frames * layer.operations)
