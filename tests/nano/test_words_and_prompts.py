"""The three sets of words never mix, and the shipped prompt files are what the code says they are."""

from collections import Counter
from importlib import resources

import numpy as np
import pytest

from mixgrpo.nano.data import draw_word, misspell
from mixgrpo.nano.prompts import heldout_prompts, train_prompts, write_prompt_files
from mixgrpo.nano.render import LETTERS
from mixgrpo.nano.words import MAX_LETTERS, MIN_LETTERS, reserved_words, split_of, words
from mixgrpo.rewards.colors import asked_colors
from mixgrpo.rewards.palette import PALETTE, is_legible, legible_pairs
from mixgrpo.rewards.spelling import asked_word


def test_splits_are_disjoint_and_follow_the_rule():
    splits = [words("pretraining"), words("post-training"), words("held-out")]
    every = [word for split in splits for word in split]
    assert len(every) == len(set(every)) == 1608
    assert [len(split) for split in splits] == [1005, 306, 297]
    assert all(split_of(word) == "held-out" for word in splits[2])
    assert all(MIN_LETTERS <= len(word) <= MAX_LETTERS and set(word) <= set(LETTERS) for word in every)


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="choose one of pretraining, post-training, held-out"):
        words("test")  # pyright: ignore[reportArgumentType]


def test_pretraining_never_draws_a_reserved_word():
    rng = np.random.default_rng(0)
    drawn = [draw_word(rng) for _ in range(5000)]
    assert not reserved_words() & set(drawn)
    assert set(drawn) & set(words("pretraining"))
    assert set(drawn) - set(words("pretraining"))


def test_a_misspelling_never_is_a_reserved_word():
    rng = np.random.default_rng(0)
    for word in words("pretraining"):
        wrong = misspell(word, rng)
        assert wrong not in reserved_words()
        assert sum(a != b for a, b in zip(word, wrong, strict=True)) == 1


def test_shipped_prompt_files_are_what_the_code_writes(tmp_path):
    write_prompt_files(tmp_path)
    shipped = resources.files("mixgrpo") / "assets" / "prompts"
    for name in ("nano-train.txt", "nano-heldout.txt"):
        assert (shipped / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8")


def test_prompts_use_only_their_own_words():
    assert {asked_word(prompt) for prompt in train_prompts()} == set(words("post-training"))
    assert {asked_word(prompt) for prompt in heldout_prompts()} <= set(words("held-out"))


def test_heldout_prompts_are_256_words_in_balanced_colors():
    prompts = heldout_prompts()
    assert len({asked_word(prompt) for prompt in prompts}) == len(prompts) == 256
    counts = Counter(asked_colors(prompt) for prompt in prompts)
    assert set(counts) == set(legible_pairs())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_train_prompts_never_repeat():
    assert len(set(train_prompts())) == len(train_prompts()) == 8 * 306


def test_every_color_is_used_as_ink_and_as_ground():
    pairs = legible_pairs()
    assert {ink for ink, _ in pairs} == {ground for _, ground in pairs} == set(PALETTE)
    assert all(is_legible(ground, ink) for ink, ground in pairs)
    assert not is_legible("yellow", "white")
