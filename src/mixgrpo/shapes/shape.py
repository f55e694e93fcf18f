"""What the cost of a run needs to know of a model."""

from dataclasses import dataclass

from mixgrpo.shapes.layers import Network, Training


@dataclass(frozen=True, slots=True)
class ImageSize:
    """What a user chooses that decides how much there is to compute."""

    height: int
    width: int
    max_sequence_length: int
    """Text tokens of the main encoder."""
    guidance_scale: float = 1.0
    """Decides, in some families, how often the transformer runs for a prediction."""
    num_frames: int = 1
    """Frames of a clip; 1: a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A text-to-image model in numbers; networks are those of one sample, one prompt, one image."""

    source: str
    """Where the numbers come from."""
    transformer: Network
    transformer_2: Network | None = None
    """A second one, which runs in place of the first at low noise and is as large."""
    passes: int = 1
    """How often the transformer runs for a prediction: twice with classifier-free guidance."""
    text_encoders: tuple[Network, ...]
    decoder: Network
    """The decoding half of the VAE."""
    vae_in_float32: bool = False
    """Whether the VAE is loaded in float32, whatever the rest is."""
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

    @property
    def parameters(self) -> int:
        """Parameters of what can be trained: the transformer, or both."""
        return sum(network.parameters for network in self.transformers)

    def trained_parameters(self, training: Training) -> int:
        """Return how many parameters are trained."""
        return sum(network.trained_parameters(training) for network in self.transformers)

    @property
    def transformers(self) -> tuple[Network, ...]:
        """What can be trained: one, or both."""
        return (self.transformer,) if self.transformer_2 is None else (self.transformer, self.transformer_2)
