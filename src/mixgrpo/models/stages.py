"""Two transformers that share the noise levels between them, as one network."""

from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn


class TwoStageTransformer(nn.Module, PeftAdapterMixin):
    """`transformer` while sigma is at or above the boundary, `transformer_2` below it.

    Weights, adapters included, are called `transformer.*` and `transformer_2.*`, as the pipeline calls its parts.
    """

    def __init__(self, transformer: Any, transformer_2: Any, *, boundary: float) -> None:
        """Take both; `boundary` is a sigma."""
        super().__init__()
        self.transformer = transformer
        self.transformer_2 = transformer_2
        self.boundary = boundary

    def is_second(self, sigma: float) -> bool:
        """Return whether `transformer_2` predicts at `sigma`."""
        return sigma < self.boundary

    def forward(self, *, sigma: float, **inputs: Any) -> tuple[Tensor, ...]:
        """Call the one that `sigma` belongs to."""
        return (self.transformer_2 if self.is_second(sigma) else self.transformer)(**inputs)

    @property
    def dtype(self) -> torch.dtype:
        """Type that both compute in."""
        return self.transformer.dtype

    @property
    def hf_quantizer(self) -> Any:
        """Diffusers' account of how both are quantised, for peft; there is none where they are not."""
        return self.transformer.hf_quantizer

    def set_attention_backend(self, backend: str) -> None:
        """Choose the attention of both, as diffusers names it."""
        self.transformer.set_attention_backend(backend)
        self.transformer_2.set_attention_backend(backend)

    def enable_gradient_checkpointing(self) -> None:
        """Let both recompute their activations in the backward pass."""
        self.transformer.enable_gradient_checkpointing()
        self.transformer_2.enable_gradient_checkpointing()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile both: each is then compiled once, whatever sigma is."""
        self.transformer.compile(*args, **kwargs)
        self.transformer_2.compile(*args, **kwargs)
