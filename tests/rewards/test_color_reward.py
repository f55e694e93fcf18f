from itertools import pairwise

import pytest
import torch

from mixgrpo.errors import RewardError
from mixgrpo.rewards import make_reward
from mixgrpo.rewards.colors import asked_colors
from mixgrpo.rewards.palette import PALETTE, legible_pairs

WHITE, RED, BLUE, BLACK = (
    torch.tensor(PALETTE[name])[:, None, None] / 255 for name in ("white", "red", "blue", "black")
)


def prompt(ink, ground):
    return f'the word "RIVER" in {ink} on {ground}'


def score(image, ink="red", ground="white"):
    return make_reward("colors")(image[None], [prompt(ink, ground)])


def canvas():
    return WHITE.expand(3, 32, 96).clone()


@pytest.mark.parametrize(("ink", "ground"), legible_pairs())
def test_the_asked_colours_score_one_and_swapped_ones_nothing(draw_word, ink, ground):
    right, swapped = (
        score(draw_word("RIVER", ink, ground), ink, ground),
        score(draw_word("RIVER", ground, ink), ink, ground),
    )
    assert right.values.item() > 0.99
    assert right.details["exact"].item() == 1.0
    assert swapped.values.item() < 0.01
    assert swapped.details["exact"].item() == 0.0


@pytest.mark.parametrize(("ink", "ground"), legible_pairs())
def test_no_other_pair_of_colours_scores_high(draw_word, ink, ground):
    others = [pair for pair in legible_pairs() if pair != (ink, ground)]
    images = draw_word("RIVER", ink, ground).expand(len(others), -1, -1, -1)
    scores = make_reward("colors")(images, [prompt(*pair) for pair in others])
    assert scores.values.max() < 0.3
    assert scores.values.mean() < 0.02
    assert scores.details["exact"].sum() == 0


@pytest.mark.parametrize("word", ["III", "CAT", "MARKET"])
def test_thin_words_small_blur_and_noise_cost_little(draw_word, word):
    image = draw_word(word, "red", "white", blur=0.6)
    noise = 0.03 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    assert score((image + noise).clamp(0, 1)).values.item() > 0.9


def test_the_score_falls_steadily_as_the_ink_fades_or_changes(draw_word):
    red, blue, white = (draw_word("RIVER", ink, "white") for ink in ("red", "blue", "white"))
    shares = [step / 20 for step in range(21)]
    for other in (blue, white):
        falling = [score(torch.lerp(red, other, share)).values.item() for share in shares]
        assert falling == sorted(falling, reverse=True)
        assert falling[0] > 0.99
        assert falling[-1] < 0.01
        assert max(a - b for a, b in pairwise(falling)) < 0.4  # no cliff to fall off at once


def test_an_empty_ground_scores_nothing():
    assert score(canvas()).values.item() < 0.01
    assert score(canvas()).details["exact"].item() == 0.0


def test_a_speck_of_ink_scores_little():
    image = canvas()
    image[:, 14:17, 40:43] = RED
    assert score(image).values.item() < 0.2


def test_a_page_of_ink_scores_nothing_even_in_a_frame_of_ground():
    framed = canvas()
    framed[:, 2:-2, 2:-2] = RED
    assert score(RED.expand(3, 32, 96)).values.item() < 0.01
    assert score(framed).values.item() < 0.5


def test_noise_and_grey_score_nothing():
    noise = torch.rand(3, 32, 96, generator=torch.Generator().manual_seed(0))
    assert score(noise).values.item() < 0.05
    assert score(torch.full((3, 32, 96), 0.5)).values.item() < 0.05


def test_letters_in_a_third_colour_cost_their_share(draw_word):
    image = draw_word("RIVER", "red", "white")
    image[:, :, 48:] = draw_word("RIVER", "blue", "white")[:, :, 48:]
    assert 0.3 < score(image).values.item() < 0.7


def test_a_few_dark_specks_cost_little(draw_word):
    image = draw_word("RIVER", "red", "white")
    image[:, 3:6, 3:6] = BLACK
    assert 0.85 < score(image).values.item() < 1.0


def test_a_stained_ground_costs(draw_word):
    image = draw_word("RIVER", "red", "white")
    image[:, :, :30] = torch.where(image[:, :, :30] == WHITE, BLUE, image[:, :, :30])
    assert score(image).values.item() < 0.5


def test_the_score_is_the_product_of_its_details(draw_word):
    scores = score(draw_word("RIVER", "orange", "black", blur=1.0), "red", "blue")
    assert scores.values.item() == pytest.approx(scores.details["ink"].item() * scores.details["ground"].item())


def test_the_score_does_not_depend_on_the_batch(draw_word):
    images = torch.rand(5, 3, 32, 96, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.7 * draw_word(
        "RIVER", "red"
    )
    reward, prompts = make_reward("colors"), [prompt("red", "white")] * 5
    together = reward(images, prompts).values
    assert together.tolist() == [reward(image[None], prompts[:1]).values.item() for image in images]


def test_larger_pictures_score_alike(draw_word):
    image = draw_word("RIVER", "green", "yellow", height=256, width=768, size=170)
    assert score(image, "green", "yellow").values.item() > 0.99


def test_a_picture_with_nan_pixels_gets_nan_not_zero(draw_word):
    image = draw_word("RIVER", "red", "white").clone()
    image[0, 0, 0] = float("nan")
    scores = score(image)
    assert scores.values.isnan().all()
    assert all(figures.isnan().all() for figures in scores.details.values())


def test_colours_are_found_whatever_surrounds_them():
    assert asked_colors('the word "RIVER" in red on white') == ("red", "white")
    assert asked_colors('A sign, "WALK in blue on black" in Orange on PURPLE, photo') == ("orange", "purple")


@pytest.mark.parametrize(
    "text", ["a river", 'the word "X" in red', "in pink on white", "in red on red", 'the word "in red on white"']
)
def test_a_prompt_without_two_known_colours_is_an_error_that_names_it(text):
    with pytest.raises(RewardError, match=r"black, white, red") as caught:
        asked_colors(text)
    assert repr(text) in str(caught.value)
