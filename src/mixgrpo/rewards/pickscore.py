"""PickScore: which of several pictures people picked for a prompt.

A CLIP ViT-H-14 trained further on what users of Pick-a-Pic chose (https://arxiv.org/abs/2305.01569). The score is the
cosine between the vectors of picture and prompt times the scale that the model learned, about 100.

Other codes divide it: Flow-GRPO by 26, MixGRPO's tables by 100 (0.227 for FLUX.1-dev), DanceGRPO by its scale, which is
the cosine; and MixGRPO trains on (score - 18) / 8. A constant that is taken away changes no advantage, so `divide_by`
is all there is to choose. Licence: the code is MIT, that of the weights was not verified.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import CLIPModel

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.base import mask_unscorable
from mixgrpo.rewards.clip import ClipEncoder
from mixgrpo.rewards.clip_files import read_preparation
from mixgrpo.rewards.clip_text import ClipTokens
from mixgrpo.rewards.placement import Placement
from mixgrpo.rewards.sources import CONFIG, TOKENIZER, TOKENIZER_FILES, WEIGHTS, Source

MODEL = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""The model that PickScore was trained from: its repository has the tokeniser and how pictures are prepared."""


def sources(*, path: str = MODEL, processor: str = PROCESSOR, **_: Any) -> tuple[Source, ...]:
    """Return where the reward with such options has its files, and loads nothing."""
    model, beside = f"{MODEL} config.json model.safetensors", f"{PROCESSOR} {TOKENIZER_FILES} preprocessor_config.json"
    wanted = (("preprocessor_config.json",), TOKENIZER)
    return (
        Source.of_hub("pickscore", "path", path, published=model, files=(CONFIG, WEIGHTS)),
        Source.of_hub("pickscore", "processor", processor, published=beside, files=wanted),
    )


class PickScoreReward:
    """PickScore, divided by what one likes."""

    name = "pickscore"

    def __init__(self, path: str, processor: str, *, divide_by: float = 1.0, placement: Placement) -> None:
        """Load the model from `path` and its tokeniser and preprocessor_config.json from `processor`.

        Both are folders or hub ids in the form of transformers.

        Raises:
            ConfigError: Files are missing, out of reach, or not a CLIP model, or `divide_by` is not positive.
        """
        if not divide_by > 0:
            raise ConfigError(f"the pickscore reward's divide_by must be above 0, got {divide_by}")
        source, beside = sources(path=path, processor=processor)
        model = source.load_model(CLIPModel)
        tokens = ClipTokens(beside, model.config, mend=False)
        self._encoder = ClipEncoder(model, read_preparation(beside), placement, tokens=tokens)
        self._factor = self._encoder.logit_scale / divide_by

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images [B, 3, H, W] in [0, 1] against prompts: [B]."""
        return mask_unscorable(self._encoder.cosines(images, prompts) * self._factor, images)
