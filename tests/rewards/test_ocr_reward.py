import pytest
import torch

from mixgrpo.rewards import make_reward
from mixgrpo.rewards.ocr import read_words

WORDS = ["RIVER", "CAT", "MARKET", "GHOST", "QUICK", "SUN", "JELLY", "WOLF"]
COLORS = [("red", "white"), ("white", "blue"), ("black", "yellow"), ("yellow", "purple")]


@pytest.fixture(scope="module")
def pictures(draw_word):
    return torch.stack([draw_word(word, *COLORS[i % len(COLORS)]) for i, word in enumerate(WORDS)])


def prompt(word):
    return f'the word "{word}" in red on white'


def test_clean_words_are_read_exactly(pictures):
    scores = make_reward("ocr")(pictures, [prompt(word) for word in WORDS])
    assert scores.values.tolist() == [1.0] * len(WORDS)
    assert scores.details["exact"].tolist() == [1.0] * len(WORDS)


def test_the_score_counts_the_letters_that_are_wrong(draw_word):
    images = torch.stack([draw_word("RIVET"), draw_word("RIVERS"), draw_word("RIVE"), draw_word("JUMP")])
    scores = make_reward("ocr")(images, [prompt("RIVER")] * 4)
    assert scores.values.tolist() == pytest.approx([0.8, 0.8, 0.8, 0.0])
    assert scores.details["exact"].tolist() == [0.0] * 4


def test_no_picture_of_much_text_beats_the_word_alone(draw_word):
    image = draw_word("CAT CAT CAT", size=14)
    assert make_reward("ocr")(image[None], [prompt("CAT")]).values.item() == 0.0


def test_an_empty_picture_scores_zero(draw_word):
    scores = make_reward("ocr")(draw_word("")[None], [prompt("RIVER")])
    assert scores.values.tolist() == [0.0]


def test_case_and_spaces_do_not_count(draw_word):
    images = torch.stack([draw_word("river"), draw_word("RI VER"), draw_word("RIVER")])
    scores = make_reward("ocr")(images, [prompt("River"), prompt("RIVER"), prompt("R I V E R")])
    assert scores.details["exact"].tolist() == [1.0] * 3


def test_what_is_read_does_not_depend_on_the_batch(pictures):
    noisy = (pictures + 0.3 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    images = torch.cat([pictures, noisy])
    together = read_words(images)
    assert together == [word for image in images for word in read_words(image[None])]
    assert together == read_words(images.flip(0))[::-1]


def test_two_threads_read_what_one_reads(pictures):
    assert read_words(pictures, threads=2) == read_words(pictures)


@pytest.mark.parametrize(("height", "width"), [(32, 160), (48, 200), (120, 360), (20, 60)])
def test_pictures_of_any_size_are_read_as_one_line(draw_word, height, width):
    image = draw_word("MARKET", height=height, width=width, size=0.65 * height)
    assert read_words(image[None]) == ["MARKET"]


def test_a_picture_with_nan_pixels_gets_nan_not_zero(pictures):
    images = pictures[:2].clone()
    images[1, :, 5, 5] = float("nan")
    scores = make_reward("ocr")(images, [prompt(word) for word in WORDS[:2]])
    assert scores.values.isnan().tolist() == [False, True]
    assert scores.details["exact"].isnan().tolist() == [False, True]


def test_rapidocr_says_nothing(capfd, pictures):
    make_reward("ocr")(pictures[:1], [prompt("RIVER")])
    assert capfd.readouterr() == ("", "")
