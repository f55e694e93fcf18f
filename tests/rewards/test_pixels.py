"""How pictures are prepared for CLIP, against transformers' own processor, Pillow, and a filter written out."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import reference_padded
from transformers import CLIPImageProcessorPil
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mixgrpo.rewards.pixels import Preparation

SIZES = [(48, 48), (96, 96), (97, 63), (63, 97), (120, 47), (31, 200), (29, 30), (48, 49), (53, 48), (20, 13), (1, 9)]


def picture(height, width):
    """A picture of 8-bit colours: noise with a black band and an edge in red."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    x = torch.randint(0, 256, (3, height, width), generator=generator) / 255
    x[:, : height // 4] = 0.0
    x[0, :, width // 2 :] = 1.0
    return x


def as_pillow(image):
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def normalised(pixels):
    mean, std = (np.array(figures)[:, None, None] for figures in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return torch.from_numpy((pixels - mean) / std).float()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_cropped_picture_is_that_of_transformers(height, width):
    image = picture(height, width)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    expected = torch.as_tensor(np.array(processor(as_pillow(image), return_tensors="np")["pixel_values"]))
    torch.testing.assert_close(Preparation(size=48, fit="crop")(image[None]), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_squashed_picture_is_that_of_pillow(height, width):
    image = picture(height, width)
    scaled = np.array(as_pillow(image).resize((48, 48), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = normalised(scaled.transpose(2, 0, 1))
    torch.testing.assert_close(Preparation(size=48, fit="squash")(image[None])[0], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), SIZES[:-1])  # the original cannot scale a side of the last to nothing
def test_a_padded_picture_is_scaled_by_the_smoothing_cubic_filter_onto_black(height, width):
    image = picture(height, width)
    expected = normalised(reference_padded(image, 56))
    torch.testing.assert_close(Preparation(size=56, fit="pad")(image[None])[0], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("fit", "cut", "first"),
    # an odd cut: transformers rounds half of it down, torchvision to the even number
    [("crop", c, c // 2) for c in range(8)]
    + [("crop_even", cut, first) for cut, first in enumerate([0, 0, 1, 2, 2, 2, 3, 4])],
)
@pytest.mark.parametrize("portrait", [True, False])
def test_an_odd_number_of_pixels_is_cut_away_as_each_original_does(fit, cut, first, portrait):
    """A picture whose shorter side needs no scaling: row i is of colour i."""
    rows = torch.arange(16 + cut).float() / 255
    image = rows[:, None].expand(3, -1, 16) if portrait else rows.expand(3, 16, -1)
    prepared = Preparation(size=16, fit=fit, mean=(0, 0, 0), std=(1, 1, 1))(image[None])[0]
    line = prepared[0, :, 0] if portrait else prepared[0, 0]
    assert (line * 255).round().tolist() == list(range(first, first + 16))


@pytest.mark.parametrize("portrait", [True, False])
def test_the_odd_pixel_of_a_border_is_at_the_bottom_and_right(portrait):
    white = torch.ones(1, 3, 16, 11) if portrait else torch.ones(1, 3, 11, 16)
    prepared = Preparation(size=16, fit="pad", mean=(0, 0, 0), std=(1, 1, 1))(white)[0]
    line = prepared[0, 5] if portrait else prepared[0, :, 5]
    assert line.tolist() == [0.0] * 2 + [1.0] * 11 + [0.0] * 3


def test_a_padded_picture_of_the_right_size_stays_as_it_is():
    image = picture(16, 16)
    prepared = Preparation(size=16, fit="pad", mean=(0, 0, 0), std=(1, 1, 1))(image[None])[0]
    assert torch.equal(prepared, (image * 255).round() / 255)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_colours_are_first_rounded_to_what_a_file_holds(fit):
    prepare = Preparation(size=24, fit=fit)
    image = picture(30, 41)[None]
    assert torch.equal(prepare((image + 0.4 / 255).clamp(max=1)), prepare(image))
    assert not torch.equal(prepare((image + 0.6 / 255).clamp(max=1)), prepare(image))


@pytest.mark.parametrize("fit", ["crop", "crop_even", "squash", "pad"])
def test_every_size_becomes_a_square_and_pictures_stay_as_they_are(fit):
    for height, width in [*SIZES, (1, 300), (300, 1)]:
        images = torch.stack([picture(height, width), picture(height, width).flip(1)])
        images[1, 0, 0, 0] = float("nan")
        images[1, 1, 0, 0] = 7.0
        before = images.clone()
        prepared = Preparation(size=24, fit=fit)(images)
        assert prepared.shape == (2, 3, 24, 24)
        assert prepared.isfinite().all()
        assert torch.equal(images.nan_to_num(nan=-1), before.nan_to_num(nan=-1))


def test_a_picture_is_prepared_alike_alone_and_in_a_batch():
    images = torch.stack([picture(40, 61), picture(40, 61).flip(2)])
    for fit in ("crop", "pad"):
        prepare = Preparation(size=32, fit=fit)
        assert torch.equal(prepare(images), torch.cat([prepare(images[:1]), prepare(images[1:])]))
