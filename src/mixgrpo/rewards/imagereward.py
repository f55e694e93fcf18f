"""How much people would like a picture for its prompt, as ImageReward v1.0 judges (https://arxiv.org/abs/2304.05977).

Weights: `ImageReward.pt` (1.79 GB) and `med_config.json` of THUDM/ImageReward on the hub, Apache-2.0. Words are split
by the tokenizer of google-bert/bert-base-uncased (Apache-2.0) with BLIP's two tokens added, 35 of them at most.
Scores are normalised as published, (raw - 0.16717362830052426) / 1.0333394966054072: roughly mean 0 and standard
deviation 1, not bounded.

Every picture is scored against its own prompt only. Code that encodes texts and pictures separately would have to
pick the diagonal of a square of scores; here the text encoder looks at the picture while it reads, so there is no
square.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer

from mixgrpo.rewards.base import mask_unscorable
from mixgrpo.rewards.imagereward_model import load_imagereward
from mixgrpo.rewards.pixels import Preparation
from mixgrpo.rewards.placement import Placement
from mixgrpo.rewards.sources import TOKENIZER, Source

_MAX_TOKENS = 35

MODEL = "THUDM/ImageReward"
_CHECKPOINT = ("ImageReward.safetensors", "ImageReward.pt")
_CONFIG = "med_config.json"
_BERT = "google-bert/bert-base-uncased"


def sources(*, path: str = MODEL, tokenizer: str = "", **_: Any) -> tuple[Source, ...]:
    """Return where the reward with such options has its files, and loads nothing."""
    if not tokenizer:
        beside = Path(path).expanduser()
        tokenizer = path if any((beside / name).is_file() for name in TOKENIZER) else _BERT
    model, bert = f"{MODEL} {_CHECKPOINT[-1]} {_CONFIG}", f"{_BERT} config.json tokenizer.json vocab.txt"
    return (
        Source.of_hub("imagereward", "path", path, published=model, files=(_CHECKPOINT, (_CONFIG,))),
        Source.of_hub("imagereward", "tokenizer", tokenizer, published=bert, files=(TOKENIZER,)),
    )


class ImageReward:
    """Scores pictures with ImageReward v1.0."""

    name = "imagereward"

    def __init__(
        self,
        *,
        path: str = MODEL,
        tokenizer: str = "",
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 16,
        offload: bool = False,
    ) -> None:
        """Load the model from `path`, a folder or a hub id.

        `tokenizer` is a folder or hub id, too; empty means the folder `path` if it has a tokenizer's files, else
        google-bert/bert-base-uncased. `dtype` is that of the two towers. `batch_size` pictures are scored at a time.
        `offload`: see `Placement`.

        Raises:
            ConfigError: The device, the dtype or the batch size is none; or a file is missing, cannot be read, or does
                not fit, and the message says what to download.
        """
        self._placement = placement = Placement(device=device, dtype=dtype, batch_size=batch_size, offload=offload)
        source, words = sources(path=path, tokenizer=tokenizer)
        model = load_imagereward(source, source.require(*_CHECKPOINT), source.require(_CONFIG))
        self._tokenizer = _load_tokenizer(words, model.text.config.vocab_size)
        self._device, self._batch_size = placement.torch_device, batch_size
        self._model = model.to_inference(placement.resting_place, placement.torch_dtype)
        self._prepare = Preparation(size=self._model.image_size, fit="crop_even")

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images [B, 3, H, W] in [0, 1], each against its own prompt: [B], higher is better."""
        starts = range(0, len(images), self._batch_size)
        ends = [start + self._batch_size for start in starts]
        with self._placement.at_work(self._model):
            scores = [self._score(images[i:j], prompts[i:j]) for i, j in zip(starts, ends, strict=True)]
        return mask_unscorable(torch.cat(scores), images)

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels = self._prepare(images)
        tokens = self._tokenizer(
            [str(prompt) for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=_MAX_TOKENS,
            return_tensors="pt",
        )
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        return self._model(pixels.to(self._device), ids.to(self._device), mask.to(self._device)).cpu()


def _load_tokenizer(source: Source, vocabulary: int) -> BertTokenizer:
    """Load BERT's tokenizer and add BLIP's tokens; its size must be that of the text encoder's `vocabulary`."""
    source.require(*TOKENIZER)  # without them transformers makes a tokenizer that knows no words
    loaded = source.load(BertTokenizer)
    # The order is BLIP's: it gives [DEC] the number 30522 and [ENC] 30523. The prompt still begins with [CLS].
    loaded.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    if len(loaded) != vocabulary:
        raise source.error(
            f"this tokenizer has {len(loaded)} tokens with [DEC] and [ENC], but the checkpoint's text encoder has "
            f"{vocabulary}"
        )
    return loaded
