import numpy as np
import pytest
import torch
from PIL import Image

from mixgrpo.rewards.pixels import Preparation, as_pictures

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [
        ((300, 500), (224, 373), (0, 74)),  # 224 * 500 / 300 = 373.3; half of 149 is 74.5, to the even side
        ((500, 300), (373, 224), (74, 0)),
        ((8, 3), (597, 224), (186, 0)),  # 597.3; half of 373 is 186.5
        ((201, 200), (225, 224), (0, 0)),  # 225.1; half of 1 is 0.5
        ((680, 200), (761, 224), (268, 0)),  # 761.6 is rounded down; half of 537 is 268.5
        ((683, 200), (764, 224), (270, 0)),
        ((340, 203), (375, 224), (76, 0)),  # 375.2; half of 151 is 75.5, to the even side, which is up
        ((64, 64), (224, 224), (0, 0)),
        ((224, 224), (224, 224), (0, 0)),
    ],
)
def test_pictures_are_resized_and_cut_as_torchvision_does_it(size, resized, corner):
    width, height = size
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
    left, top = corner
    cut = np.array(picture.resize(resized, Image.Resampling.BICUBIC))[top : top + 224, left : left + 224]
    expected = (cut / 255 - MEAN) / STD
    got = Preparation(size=224, fit="crop_even").of_pictures([picture])
    assert got.dtype == torch.float32
    assert got.shape == (1, 3, 224, 224)
    assert np.abs(got[0].permute(1, 2, 0).numpy() - expected).max() < 1e-6


def test_pictures_have_8_bits():
    image = (
        torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 254.6 / 255, 1.5, float("nan")]).view(1, 1, 6).expand(1, 3, 1, 6)
    )
    (picture,) = as_pictures(image)
    assert picture.size == (6, 1)
    assert np.array(picture)[0].tolist() == [[0] * 3, [0] * 3, [1] * 3, [255] * 3, [255] * 3, [0] * 3]


def test_all_pictures_of_a_batch_are_kept_apart_and_are_those_of_their_images():
    images, prepare = torch.rand(2, 3, 20, 30), Preparation(size=16, fit="crop_even")
    together = prepare(images)
    assert not torch.equal(together[0], together[1])
    assert torch.equal(together[1:], prepare(images[1:]))
    assert torch.equal(together, prepare.of_pictures(as_pictures(images)))
