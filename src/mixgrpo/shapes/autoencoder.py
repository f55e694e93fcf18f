"""`AutoencoderKL` and `AutoencoderKLFlux2`, from their config files: both halves; training runs the decoder."""

from mixgrpo.shapes.files import Numbers
from mixgrpo.shapes.layers import Layer, Network, attention, convolution, linear
from mixgrpo.shapes.shape import ImageSize


def autoencoder_parts(config: Numbers, size: ImageSize) -> tuple[Network, Network]:
    """Return encoder and decoder of one image of `size`."""
    return _encoder(config, size), _decoder(config, size)


def decoder_peak(config: Numbers, size: ImageSize) -> int:
    """Return the most numbers alive at once while one image is decoded.

    That is in the first residual block at full size, which gets wide channels from the upsampling before it: its input,
    and the outputs of norm and activation.
    """
    channels = _decoder_channels(config)
    widest = max(channels[0], channels[min(1, len(channels) - 1)])
    return 3 * size.height * size.width * widest


def _decoder_channels(config: Numbers) -> list[int]:
    return list(config.get("decoder_block_out_channels") or config["block_out_channels"])


def _decoder(config: Numbers, size: ImageSize) -> Network:
    channels, latent = _decoder_channels(config)[::-1], config["latent_channels"]
    factor = 2 ** (len(channels) - 1)
    pixels = (size.height // factor) * (size.width // factor)
    layers: list[Layer] = []
    if config.get("use_post_quant_conv", True):
        layers.append(convolution("post_quant_conv", latent, latent, kernel=1, pixels=pixels))
    layers.append(convolution("conv_in", latent, channels[0], kernel=3, pixels=pixels))
    layers += _middle(config, channels[0], pixels)
    width = channels[0]
    for index, outputs in enumerate(channels):
        for _ in range(config["layers_per_block"] + 1):
            layers += _residual(width, outputs, pixels)
            width = outputs
        if index < len(channels) - 1:
            pixels *= 4
            layers.append(convolution("upsample", width, width, kernel=3, pixels=pixels))
    layers += [_norm(width), convolution("conv_out", width, config["out_channels"], kernel=3, pixels=pixels)]
    return Network(layers)


def _encoder(config: Numbers, size: ImageSize) -> Network:
    channels, latent = config["block_out_channels"], config["latent_channels"]
    pixels = size.height * size.width
    layers = [convolution("conv_in", config["in_channels"], channels[0], kernel=3, pixels=pixels)]
    width = channels[0]
    for index, outputs in enumerate(channels):
        for _ in range(config["layers_per_block"]):
            layers += _residual(width, outputs, pixels)
            width = outputs
        if index < len(channels) - 1:
            pixels //= 4
            layers.append(convolution("downsample", width, width, kernel=3, pixels=pixels))
    layers += _middle(config, width, pixels)
    layers += [_norm(width), convolution("conv_out", width, 2 * latent, kernel=3, pixels=pixels)]
    if config.get("use_quant_conv", True):
        layers.append(convolution("quant_conv", 2 * latent, 2 * latent, kernel=1, pixels=pixels))
    return Network(layers)


def _norm(width: int) -> Layer:
    return Layer(name="norm", parameters=2 * width)


def _residual(inputs: int, outputs: int, pixels: int) -> list[Layer]:
    layers = [
        _norm(inputs),
        convolution("conv1", inputs, outputs, kernel=3, pixels=pixels),
        _norm(outputs),
        convolution("conv2", outputs, outputs, kernel=3, pixels=pixels),
    ]
    if inputs != outputs:
        layers.append(convolution("conv_shortcut", inputs, outputs, kernel=1, pixels=pixels))
    return layers


def _middle(config: Numbers, width: int, pixels: int) -> list[Layer]:
    layers = _residual(width, width, pixels)
    if config.get("mid_block_add_attention", True):
        layers.append(_norm(width))
        layers += [linear(name, width, width, rows=pixels) for name in ("to_q", "to_k", "to_v", "to_out.0")]
        layers.append(attention("attention", heads=1, head_width=width, rows=pixels))
    return layers + _residual(width, width, pixels)
