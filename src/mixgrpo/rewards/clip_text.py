"""Prompts as the text encoders of CLIP are given them, token for token as the published rewards do it.

A text is cut so that start, text and end fit the model's positions, and the end token is kept. Behind it come zeros up
to the longest text, as in open_clip; transformers repeats the end token there instead. It makes no difference: a text's
embedding is taken at its first end token, and nothing looks at what comes later.

open_clip's tokeniser, unlike that of transformers, first mends the text with `ftfy` (curly quotes become straight ones)
and resolves HTML such as `&amp;`. So do the rewards that were published with it.
"""

import html
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig

from mixgrpo.errors import MissingExtraError
from mixgrpo.rewards.sources import Source


class ClipTokens:
    """Turns texts into the token numbers that one CLIP model takes."""

    def __init__(self, source: Source, config: CLIPConfig, *, mend: bool) -> None:
        """Load the tokeniser for a model with this `config`; `mend` cleans texts as open_clip does.

        Raises:
            ConfigError: There is no tokeniser, or it is not the one of this model.
            MissingExtraError: `mend` needs `ftfy`, which is not installed.
        """
        self._mend = _load_mender(source.reward) if mend else None
        self._tokenizer = source.load(AutoTokenizer, use_fast=True)
        text: Any = config.text_config
        self._length = text.max_position_embeddings
        self._start, self._end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        # Configs from before transformers 4.31 have a 2 there, which stands for "the highest number of a text".
        end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
        if self._start is None or self._end != end or len(self._tokenizer) > text.vocab_size:
            raise source.error(
                f"this tokeniser does not belong to the model, whose {text.vocab_size} tokens have their end "
                f"token at {end}: its {len(self._tokenizer)} have theirs at {self._end}"
            )

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return token numbers, int64 [B, L], L the longest of the B texts."""
        mended = list(texts) if self._mend is None else [self._mend(text) for text in texts]
        # without the tokeniser's own cutting and padding, which would change its state
        rows = self._tokenizer(mended, add_special_tokens=False, verbose=False)["input_ids"]
        rows = [[self._start, *row[: self._length - 2], self._end] for row in rows]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def _load_mender(reward: str) -> Callable[[str], str]:
    """Return what open_clip does to a text before it is cut into tokens."""
    if find_spec("ftfy") is None:
        raise MissingExtraError(f"the {reward} reward", "ftfy", "clip")
    import ftfy  # noqa: PLC0415 (comes with an extra)

    def mend(text: str) -> str:
        return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()

    return mend
