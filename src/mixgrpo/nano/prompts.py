"""The prompt files that come with flux-nano, as a function of the word split and the palette.

`nano-train.txt` has every post-training word in several colours, `nano-heldout.txt` 256 prompts of held-out words.
"""

from pathlib import Path

from mixgrpo.nano.data import make_prompt
from mixgrpo.nano.words import Split, words
from mixgrpo.rewards.palette import legible_pairs

TRAIN_COLORS_PER_WORD = 8
HELDOUT_SIZE = 256
# Coprime to the number of legible pairs and of held-out words: counting in these strides visits each of them before
# any comes twice.
_PAIR_STRIDE, _WORD_STRIDE = 17, 101


def _prompts(split: Split, size: int, *, word_stride: int) -> list[str]:
    """Pair the words of a split in turn with the colour pairs in turn, `word_stride` words apart."""
    pairs, names = legible_pairs(), words(split)
    prompts: list[str] = []
    for index in range(size):
        ink, ground = pairs[(index * _PAIR_STRIDE) % len(pairs)]
        prompts.append(make_prompt(names[(index * word_stride) % len(names)], ink, ground))
    return prompts


def train_prompts() -> list[str]:
    """Return the prompts for post-training: every word in eight colour pairs, the words in turn."""
    return _prompts("post-training", TRAIN_COLORS_PER_WORD * len(words("post-training")), word_stride=1)


def heldout_prompts() -> list[str]:
    """Return the 256 prompts that judge a model: held-out words, all different, the colour pairs balanced.

    The words are spread over the alphabetical list, so that any prefix of the list is a fair sample.
    """
    return _prompts("held-out", HELDOUT_SIZE, word_stride=_WORD_STRIDE)


def write_prompt_files(folder: Path) -> None:
    """Write `nano-train.txt` and `nano-heldout.txt`, one prompt a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in (("nano-train.txt", train_prompts()), ("nano-heldout.txt", heldout_prompts())):
        (folder / name).write_text("\n".join(prompts) + "\n", encoding="utf-8")
