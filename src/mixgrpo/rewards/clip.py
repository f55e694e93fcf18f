"""What all rewards that are CLIP models share: pictures and texts become vectors of length 1.

Scores are computed in float32 whatever the network runs in. Pictures and texts go through it in batches, whose size
changes memory and speed; results differ in the last bits only. A text that several pictures were drawn for is
embedded once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.clip_text import ClipTokens
from mixgrpo.rewards.pixels import Preparation

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how a reward's network runs: options that all of them have."""

    device: str = "cpu"
    """A torch device, such as `cpu` or `cuda:1`."""
    dtype: str = "float32"
    """What the network computes in: float32, float16 or bfloat16."""
    batch_size: int = 16
    """Pictures, or texts, that go through the network at once."""

    def __post_init__(self) -> None:
        """Find mistakes before weights are loaded: ConfigError."""
        if self.dtype not in DTYPES:
            raise ConfigError(f"a reward's options.dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.batch_size < 1:
            raise ConfigError(f"a reward's options.batch_size must be at least 1, got {self.batch_size}")
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            message = f"a reward's options.device {self.device!r} is no torch device: use cpu or cuda:0"
            raise ConfigError(message) from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"a reward's options.device is {self.device!r}, but torch sees no CUDA device here: use cpu"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        return DTYPES[self.dtype]


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
        self._model = frozen.to(placement.device, placement.torch_dtype)
        self._prepare = prepare
        self._tokens = tokens
        self._placement = placement

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Return the vectors of images [B, 3, H, W] in [0, 1]: float32 [B, D] on the CPU, of length 1."""
        vectors: list[Tensor] = []
        for batch in images.split(self._placement.batch_size):
            pixels = self._prepare(batch).to(self._placement.device, self._placement.torch_dtype)
            pooled = self._model.vision_model(pixel_values=pixels).pooler_output
            vectors.append(self._model.visual_projection(pooled).float().cpu())
        return normalize(torch.cat(vectors), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of B texts: float32 [B, D] on the CPU, of length 1."""
        assert self._tokens is not None, "this encoder was made without a tokeniser"
        vectors: list[Tensor] = []
        for start in range(0, len(texts), self._placement.batch_size):
            numbers = self._tokens(texts[start : start + self._placement.batch_size]).to(self._placement.device)
            pooled = self._model.text_model(input_ids=numbers).pooler_output
            vectors.append(self._model.text_projection(pooled).float().cpu())
        return normalize(torch.cat(vectors), dim=-1)

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosine between every image of [B, 3, H, W] and its own prompt: float32 [B], from -1 to 1."""
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        texts = self.embed_texts(list(places))[[places[prompt] for prompt in prompts]]
        return (self.embed_images(images) * texts).sum(dim=-1)
