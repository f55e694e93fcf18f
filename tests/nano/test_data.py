"""Pictures and captions: the same for the same numbers, and as wrong as they are asked to be."""

import numpy as np
import pytest
import torch

from mixgrpo.errors import MissingExtraError
from mixgrpo.nano import render
from mixgrpo.nano.data import CaptionNoise, draw_pictures, make_caption, make_pictures, make_rng
from mixgrpo.nano.render import FACES, HEIGHT, LETTERS, WIDTH, Look, draw, draw_mask
from mixgrpo.rewards.colors import asked_colors
from mixgrpo.rewards.palette import PALETTE
from mixgrpo.rewards.spelling import asked_word

needs_fonts = pytest.mark.skipif(
    any(not render.is_installed(face) for face in FACES), reason="the extra 'nano' (typefaces) is not installed"
)


@needs_fonts
def test_pictures_are_a_function_of_seed_and_step():
    first = draw_pictures(make_pictures(make_rng(3, "flow", 7), 8, blurred=0.5))
    again = draw_pictures(make_pictures(make_rng(3, "flow", 7), 8, blurred=0.5))
    other = draw_pictures(make_pictures(make_rng(3, "flow", 8), 8, blurred=0.5))
    assert first.shape == (8, 3, HEIGHT, WIDTH)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@needs_fonts
@pytest.mark.parametrize("face", FACES)
def test_no_letter_is_empty_or_leaves_its_cell(face):
    for letter, cell in render.glyphs(face).items():
        assert cell.max() > 0.9, letter
        assert not cell[0].any(), letter
        assert cell[:, [0, -1]].max() < 0.6, letter


@needs_fonts
def test_the_longest_word_fits_at_every_shift():
    for shift_x in (-render.MAX_SHIFT_X, render.MAX_SHIFT_X):
        for shift_y in (-render.MAX_SHIFT_Y, render.MAX_SHIFT_Y):
            mask = draw_mask("WWWWWQ", Look(ink="red", ground="white", shift_x=shift_x, shift_y=shift_y))
            assert not mask[:, [0, -1]].any()
            assert not mask[[0, -1]].any()


@needs_fonts
def test_a_picture_has_the_colors_of_the_palette():
    picture = draw("HI", Look(ink="red", ground="yellow"))
    assert np.allclose(picture[0, 0] * 255, PALETTE["yellow"])
    assert np.isclose(picture * 255, PALETTE["red"], atol=1.0).all(-1).sum() > 50


def test_missing_typefaces_name_the_extra(monkeypatch):
    monkeypatch.setattr(render, "find_spec", lambda package: None)
    render.glyphs.cache_clear()
    with pytest.raises(MissingExtraError, match=r"font-roboto.*mixgrpo\[nano\]"):
        render.glyphs("roboto")


def test_captions_are_wrong_as_often_as_asked():
    rng = make_rng(0, "probe", 9)
    pictures = make_pictures(rng, 2000)
    captions = [make_caption(p, rng, CaptionNoise(wrong_letter=0.4, wrong_color=0.1)) for p in pictures]
    wrong_letter = np.mean([asked_word(c) != p.word for c, p in zip(captions, pictures, strict=True)])
    wrong_color = np.mean(
        [asked_colors(c) != (p.look.ink, p.look.ground) for c, p in zip(captions, pictures, strict=True)]
    )
    assert wrong_letter == pytest.approx(0.4, abs=0.03)
    assert wrong_color == pytest.approx(0.1, abs=0.02)


def test_clean_captions_say_what_the_picture_shows():
    rng = make_rng(0, "probe", 9)
    for picture in make_pictures(rng, 50):
        caption = make_caption(picture, rng)
        assert asked_word(caption) == picture.word
        assert asked_colors(caption) == (picture.look.ink, picture.look.ground)


def test_every_letter_has_look_alikes():
    from mixgrpo.nano.data import LOOK_ALIKES

    assert set(LOOK_ALIKES) == set(LETTERS)
    assert all(letter not in others and set(others) <= set(LETTERS) for letter, others in LOOK_ALIKES.items())
