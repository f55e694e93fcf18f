"""CLIP score: how well a picture fits its prompt.

The score is the cosine between the vectors of picture and prompt, unscaled and not clipped. It is the "CLIP score" of
MixGRPO (https://arxiv.org/abs/2507.21802, whose table has 0.388 for FLUX.1-dev), whose code takes Apple's
DFN5B-CLIP-ViT-H-14 at 378 pixels. The released code of DanceGRPO has no such reward, so which model its paper means
could not be verified. Licence of the weights: Apple's own, of its sample code (not verified).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mixgrpo.rewards.base import mask_unscorable
from mixgrpo.rewards.clip import ClipEncoder
from mixgrpo.rewards.clip_files import CLIP_FILES, load_clip
from mixgrpo.rewards.clip_text import ClipTokens
from mixgrpo.rewards.placement import Placement
from mixgrpo.rewards.sources import TOKENIZER, TOKENIZER_FILES, Source

MODEL = "apple/DFN5B-CLIP-ViT-H-14-378"
"""What MixGRPO loads under its former name, DFN5B-CLIP-ViT-H-14-384."""

TOKENIZER_REPOSITORY = "openai/clip-vit-large-patch14"
"""A repository with the tokeniser that open_clip builds in."""


def sources(*, path: str = MODEL, tokenizer: str = TOKENIZER_REPOSITORY, **_: Any) -> tuple[Source, ...]:
    """Return where the reward with such options has its files, and loads nothing."""
    model = f"{MODEL} open_clip_config.json open_clip_pytorch_model.bin"
    words = f"{TOKENIZER_REPOSITORY} {TOKENIZER_FILES}"
    return (
        Source.of_hub("clip_score", "path", path, published=model, files=CLIP_FILES),
        Source.of_hub("clip_score", "tokenizer", tokenizer, published=words, files=(TOKENIZER,)),
    )


class ClipScoreReward:
    """The cosine between picture and prompt, by any CLIP model."""

    name = "clip_score"

    def __init__(self, path: str, tokenizer: str, *, placement: Placement) -> None:
        """Load the model of `path`, and the tokeniser.

        `path` is a folder or hub id with either open_clip's files (open_clip_config.json and
        open_clip_pytorch_model.bin or open_clip_model.safetensors) or those of transformers' `CLIPModel`, with its
        preprocessor_config.json. Texts are cleaned as open_clip does in both cases.

        Raises:
            ConfigError: Files are missing, out of reach, or not a CLIP model.
            MissingExtraError: `ftfy` is not installed.
        """
        source, words = sources(path=path, tokenizer=tokenizer)
        model, prepare = load_clip(source)
        tokens = ClipTokens(words, model.config, mend=True)
        self._encoder = ClipEncoder(model, prepare, placement, tokens=tokens)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images [B, 3, H, W] in [0, 1] against prompts: [B], in [-1, 1]."""
        return mask_unscorable(self._encoder.cosines(images, prompts), images)
