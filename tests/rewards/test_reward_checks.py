from types import MappingProxyType

import numpy as np
import pytest
import torch

from mixgrpo.errors import RewardError
from mixgrpo.rewards.base import NamedReward, Reward, Scores, check_scores, columns_of

IMAGES = torch.rand(3, 3, 4, 4)


@pytest.mark.parametrize(
    "returned",
    [torch.tensor([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0], (1, 2, 3), np.array([1.0, 2.0, 3.0]), torch.tensor([1, 2, 3])],
)
def test_tensors_lists_and_arrays_of_one_number_per_image_are_scores(returned):
    scores = check_scores("mine", returned, IMAGES)
    assert scores.values.dtype == torch.float32
    assert scores.values.tolist() == [1.0, 2.0, 3.0]
    assert scores.details == {}


@pytest.mark.parametrize(
    "returned",
    [
        torch.zeros(3, 1),
        torch.zeros(2),
        torch.tensor(0.5),
        0.5,
        [0.1, 0.2],
        [],
        [[0.1], [0.2], [0.3]],
        Scores(torch.zeros(4), {}),
        Scores(torch.zeros(3), {"exact": torch.zeros(2)}),
    ],
)
def test_anything_but_one_number_per_image_is_an_error_that_names_the_reward(returned):
    with pytest.raises(RewardError, match=r"'mine'.*for 3 images"):
        check_scores("mine", returned, IMAGES)


@pytest.mark.parametrize("returned", [None, ["good", "bad", "good"], [0.5, None, 0.5]])
def test_what_is_not_numbers_is_an_error_that_says_what_to_return(returned):
    with pytest.raises(RewardError, match=r"'mine'.*not numbers.*NaN"):
        check_scores("mine", returned, IMAGES)


def test_nan_stays_nan_and_infinite_scores_become_nan():
    scores = check_scores("mine", [float("nan"), float("inf"), -float("inf")], IMAGES)
    assert scores.values.isnan().all()


def test_a_picture_with_pixels_that_are_not_finite_has_no_score():
    images = IMAGES.clone()
    images[1, 0, 2, 2] = float("nan")
    images[2, 1, 0, 0] = float("inf")
    scores = check_scores("mine", [0.5, 0.5, 0.5], images)
    assert scores.values.isnan().tolist() == [False, True, True]


def test_scores_are_a_copy_without_gradient():
    returned = torch.ones(3, requires_grad=True)
    scores = check_scores("mine", returned, IMAGES)
    assert not scores.values.requires_grad
    with torch.no_grad():
        returned.zero_()
    assert scores.values.tolist() == [1.0, 1.0, 1.0]


def test_a_named_function_is_a_reward():
    assert isinstance(NamedReward("mine", lambda images, prompts: [0.0]), Reward)


def test_a_prompt_has_the_columns_of_its_line_or_none():
    class Line(str):
        columns = MappingProxyType({"target": 3})

    assert columns_of(Line("x")) == {"target": 3}
    assert columns_of("x") == {}
