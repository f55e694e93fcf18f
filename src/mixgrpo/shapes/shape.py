"""What the cost of a run needs to know of a model."""

from dataclasses import dataclass

from mixgrpo.shapes.layers import Network


@dataclass(frozen=True, slots=True)
class ImageSize:
    """What a user chooses that decides how much there is to compute."""

    height: int
    width: int
    max_sequence_length: int
    """Text tokens of the main encoder."""
    guidance_scale: float = 1.0
    """Decides, in some families, how often the transformer runs for a prediction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A text-to-image model in numbers; networks are those of one sample, one prompt, one image."""

    source: str
    """Where the numbers come from."""
    transformer: Network
    passes: int = 1
    """How often the transformer runs for a prediction: twice with classifier-free guidance."""
    text_encoders: tuple[Network, ...]
    decoder: Network
    """The decoding half of the VAE."""
    decoder_peak: int
    """Most numbers that are alive at once while one image is decoded."""
    other_parameters: int
    """Parameters that are loaded and not run in training: the encoding half of the VAE."""
    tokens: int
    """Text and image tokens together."""
    forward_peak: int
    """Most numbers that are alive at once in a forward pass without gradient."""
    backward_peak: int
    """Numbers alive in a backward pass besides those that the forward pass kept, at the worst moment."""
    latent_numbers: int
    """Numbers of one latent."""
    conditioning_numbers: int
    """Numbers of one encoded prompt."""
    lora_targets: tuple[str, ...]
    """Layers that get an adapter unless told otherwise."""
