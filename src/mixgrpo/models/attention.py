"""Which function computes a transformer's attention, and in what type it gets queries and keys."""

from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from mixgrpo.errors import ConfigError

_NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
"""What diffusers' transformers call the norms of queries and keys, those of the text stream too."""


def choose_attention(transformer: Any, backend: str, *, autocast: torch.dtype | None) -> None:
    """Have the attention computed by `backend`, as diffusers names it.

    Under autocast, norms of queries and keys keep the type of their input. Torch's autocast computes `rms_norm` in
    float32 on a GPU (from torch 2.12) and returns float32, as norms with float32 weights do everywhere. Torch's own
    attention is cast back by autocast, but functions such as flash-attn's are called past it and refuse float32.

    Args:
        transformer: a diffusers transformer, or two as one network.
        backend: not "native".
        autocast: what the transformer computes in, if not in the type of its weights.

    Raises:
        ConfigError: if the backend cannot be used here, or the transformer's attention cannot be exchanged.
    """
    kinds = (AttentionModuleMixin, Attention)
    attentions: list[Any] = [module for module in transformer.modules() if isinstance(module, kinds)]
    if not any(hasattr(module.processor, "_attention_backend") for module in attentions):
        kind = type(attentions[0].processor).__name__ if attentions else "there is none"
        raise ConfigError(
            f"model.attention {backend!r} would do nothing for this model: diffusers computes its attention ({kind}) "
            "by torch's own function, whatever is asked for; set it to native"
        )
    try:
        transformer.set_attention_backend(backend)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"model.attention {backend!r} cannot be used here: {error}") from error
    if autocast is not None:
        for module in attentions:
            for name, norm in module.named_children():
                if name in _NORMS:
                    norm.register_forward_hook(_in_type_of_input)


def _in_type_of_input(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Return what a norm returned in the type of what it was given."""
    del norm
    return output.to(inputs[0].dtype)
