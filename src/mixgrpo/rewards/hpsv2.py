"""HPSv2.1: how people would like a picture for its prompt.

A CLIP ViT-H-14 of open_clip trained further on the Human Preference Dataset v2 (https://arxiv.org/abs/2306.09341). The
score is the cosine between the vectors of picture and prompt, as in MixGRPO's tables (0.313 for FLUX.1-dev); those of
HPSv2 show it times 100. Versions 2.0 and 2.1 have one architecture, but their scores do not compare. Licence: the code
is Apache-2.0, that of the weights was not verified.

The checkpoint is in open_clip's layout and is converted when it is loaded. Pictures are prepared as HPSv2's code does
with the libraries that MixGRPO and DanceGRPO name (torchvision 0.20): whole, with black borders, see `pixels`.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mixgrpo.rewards.base import mask_unscorable
from mixgrpo.rewards.clip import ClipEncoder
from mixgrpo.rewards.clip_files import read_architecture
from mixgrpo.rewards.clip_text import ClipTokens
from mixgrpo.rewards.open_clip import VIT_H_14, build_clip
from mixgrpo.rewards.pixels import Preparation
from mixgrpo.rewards.placement import Placement
from mixgrpo.rewards.sources import TOKENIZER, TOKENIZER_FILES, Source

CHECKPOINT = "HPS_v2.1_compressed.pt"
REPOSITORY = "xswu/HPSv2"
TOKENIZER_REPOSITORY = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""The model that HPSv2 was trained from: its repository has the tokeniser that open_clip builds in."""


def sources(*, path: str = REPOSITORY, tokenizer: str = TOKENIZER_REPOSITORY, **_: Any) -> tuple[Source, ...]:
    """Return where the reward with such options has its files, and loads nothing."""
    published = f"{TOKENIZER_REPOSITORY} {TOKENIZER_FILES}"
    return (
        Source.of_hub("hpsv2", "path", path, published=f"{REPOSITORY} {CHECKPOINT}", files=((CHECKPOINT,),)),
        Source.of_hub("hpsv2", "tokenizer", tokenizer, published=published, files=(TOKENIZER,)),
    )


class HpsV2Reward:
    """HPSv2.1, or HPSv2.0 where `path` is its file."""

    name = "hpsv2"

    def __init__(self, path: str, tokenizer: str, *, placement: Placement) -> None:
        """Load the checkpoint of `path`: the file itself, or a folder or hub id that has HPS_v2.1_compressed.pt.

        `tokenizer` is a folder or a hub id in the form of transformers. The published checkpoint is a ViT-H-14; beside
        one of another architecture there is a file of the same name but .json, with open_clip's `model_cfg`.

        Raises:
            ConfigError: Files are missing, out of reach, or weights of another architecture.
            MissingExtraError: `ftfy` is not installed.
        """
        source, words = sources(path=path, tokenizer=tokenizer)
        file = source.require(CHECKPOINT)
        beside = file.with_suffix(".json")
        architecture = read_architecture(beside, source) if beside.is_file() else VIT_H_14
        tokens = ClipTokens(words, architecture.config(), mend=True)
        model = build_clip(source.read_weights(file), architecture, who=f"{source}: {file}")
        prepare = Preparation(size=architecture.image_size, fit="pad")
        self._encoder = ClipEncoder(model, prepare, placement, tokens=tokens)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images [B, 3, H, W] in [0, 1] against prompts: [B], in [-1, 1]."""
        return mask_unscorable(self._encoder.cosines(images, prompts), images)
