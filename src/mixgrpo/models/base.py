"""What the project needs of a generator. No loop and no reinforcement learning here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The encoded prompts of a batch: tensors whose first dim is the prompt, by the names the adapter gave them."""

    tensors: dict[str, Tensor]
    negative: "Conditioning | None" = None
    """The same of what guidance leads each prompt away from; None: one text for all, which the model knows."""

    def take(self, rows: Tensor) -> "Conditioning":
        """Return the conditioning of the prompts at `rows`, an index tensor [B]."""
        tensors = {name: tensor[rows] for name, tensor in self.tensors.items()}
        return Conditioning(tensors, None if self.negative is None else self.negative.take(rows))


class FlowModel(Protocol):
    """A flow-matching model that draws images or clips from text.

    Latents are [B, *latent_shape] in whatever packing the model likes.
    """

    lora_targets: tuple[str, ...]
    """Names of the layers that get an adapter unless told otherwise."""
    float32_parts: tuple[str, ...]
    """Parts of the pipeline that stay in float32 whatever the others are loaded in."""
    source: Path | None
    """Folder that the model came from."""

    @property
    def pipeline_class(self) -> str:
        """Name of the class in diffusers that loads what is saved."""
        ...

    @property
    def transformer(self) -> nn.Module:
        """The network that predicts the velocity; the only part that is trained. Can be exchanged."""
        ...

    @transformer.setter
    def transformer(self, transformer: nn.Module) -> None: ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample's latent."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        ...

    def encode(self, prompts: Sequence[str], negatives: Sequence[str] = ()) -> Conditioning:
        """Encode prompts, and each one's own negative prompt; without one (empty), the model's holds."""
        ...

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens of the main text encoder each prompt takes, if none is cut."""
        ...

    def velocity(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """Predict v = noise - x0 at x [B, *latent], guidance included."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Turn latents at sigma 0 into images [B, 3, H, W], or clips [B, F, 3, H, W], float32 in [0, 1], on the CPU."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """Turn images [B, 3, H, W] in [0, 1] into latents at sigma 0, always the same ones; `decode` undoes it."""
        ...

    def encode_mask(self, masks: Tensor) -> Tensor:
        """Mark, bool [B, *latent_shape], the latents that draw the marked pixels of `masks`, bool [B, 1, H, W]."""
        ...

    def call_arguments(self) -> dict[str, Any]:
        """Return the pipeline's own call that draws as this model is set, as plain values that can be written down.

        A text under a name that ends in `_embeds` is meant as the pipeline's `encode_prompt` encodes it.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write a folder that the family's own diffusers pipeline loads."""
        ...

    def save_lora(self, folder: Path) -> None:
        """Write the adapter alone in the form that the pipeline's `load_lora_weights` takes."""
        ...

    def save_comfyui_lora(self, file: Path) -> str:
        """Write the adapter alone as ComfyUI reads it; returns why that was not done, or "" if it was."""
        ...

    def load_lora(self, folder: Path) -> None:
        """Put an adapter that `save_lora` wrote on top of the model."""
        ...


def times(x: Tensor, time: float) -> Tensor:
    """Return a time for every sample of x [B, ...]: float32 [B]."""
    return torch.full((len(x),), time, device=x.device)
