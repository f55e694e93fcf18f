import torch

from mixgrpo.rewards import make_reward


def test_brightness_is_the_mean_of_all_pixels():
    images = torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.25), torch.ones(3, 8, 8)])
    assert make_reward("brightness")(images, ["x"] * 3).tolist() == [0.0, 0.25, 1.0]


def test_jpeg_prefers_flat_pictures_to_noise_and_stays_between_zero_and_one():
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = torch.stack([torch.full((3, 64, 64), 0.5), noise * 0.1 + 0.5, noise])
    flat, faint, loud = make_reward("jpeg")(images, ["x"] * 3).tolist()
    assert 1 > flat > faint > loud > 0
    assert flat > 0.9


def test_jpeg_of_lower_quality_scores_higher():
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert make_reward("jpeg", {"quality": 30})(images, ["x"]) > make_reward("jpeg")(images, ["x"])


def test_pictures_with_nan_pixels_get_nan_not_zero():
    images = torch.full((2, 3, 16, 16), 0.5)
    images[1, 0, 0, 0] = float("nan")
    for name in ("jpeg", "brightness"):
        assert make_reward(name)(images, ["x"] * 2).isnan().tolist() == [False, True]
