"""What all rewards that are CLIP models share: pictures and texts become vectors of length 1.

Scores are computed in float32 whatever the network runs in. Pictures and texts go through it in batches, whose size
changes memory and speed; results differ in the last bits only. A text that several pictures were drawn for is
embedded once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.clip_text import ClipTokens
from mixgrpo.rewards.pixels import Preparation
from mixgrpo.rewards.placement import Placement


class ClipEncoder:
    """A frozen CLIP model with its way to prepare pictures and, if it reads any, texts."""

    def __init__(
        self, model: CLIPModel, prepare: Preparation, placement: Placement, *, tokens: ClipTokens | None = None
    ) -> None:
        """Take the parts, the model in float32, and move it to its device and `dtype`.

        Raises:
            ConfigError: The pictures are not prepared in the size that the model takes.
        """
        config: Any = model.config
        size = config.vision_config.image_size
        if prepare.size != size:
            raise ConfigError(
                f"a reward's pictures are prepared {prepare.size} pixels wide, but its model takes {size}: its files "
                f"are of different models"
            )
        # read before the weights are rounded: bfloat16 would be a percent off
        self.logit_scale = model.logit_scale.detach().exp().item()
        """What the model multiplies cosines with, learned in its training: 100 or nearly so."""
        frozen: Any = model.requires_grad_(False).eval()
        self._model = frozen.to(placement.resting_place, placement.torch_dtype)
        self._prepare = prepare
        self._tokens = tokens
        self._placement = placement

    def embed_images(self, images: Tensor) -> Tensor:
        """Return the vectors of images [B, 3, H, W] in [0, 1]: float32 [B, D] on the CPU, of length 1."""
        with self._placement.at_work(self._model):
            return self._embed_images(images)

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosine between every image of [B, 3, H, W] and its own prompt: float32 [B], from -1 to 1."""
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        with self._placement.at_work(self._model):
            texts = self._embed_texts(list(places))[[places[prompt] for prompt in prompts]]
            return (self._embed_images(images) * texts).sum(dim=-1)

    @torch.no_grad()
    def _embed_images(self, images: Tensor) -> Tensor:
        vectors: list[Tensor] = []
        for batch in images.split(self._placement.batch_size):
            pixels = self._prepare(batch).to(self._placement.torch_device, self._placement.torch_dtype)
            pooled = self._model.vision_model(pixel_values=pixels).pooler_output
            vectors.append(self._model.visual_projection(pooled).float().cpu())
        return normalize(torch.cat(vectors), dim=-1)

    @torch.no_grad()
    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        assert self._tokens is not None, "this encoder was made without a tokeniser"
        vectors: list[Tensor] = []
        for start in range(0, len(texts), self._placement.batch_size):
            numbers = self._tokens(texts[start : start + self._placement.batch_size]).to(self._placement.torch_device)
            pooled = self._model.text_model(input_ids=numbers).pooler_output
            vectors.append(self._model.text_projection(pooled).float().cpu())
        return normalize(torch.cat(vectors), dim=-1)
