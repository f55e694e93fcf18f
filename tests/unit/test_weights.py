"""The weights of steps: their proportions, and their mean of 1."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import reference

from mixgrpo.rl.weights import inverse_step_weights, noise_level_weights


@given(st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=30))
def test_weights_by_noise_are_in_its_proportion_and_one_on_average(stds: list[float]) -> None:
    weights = noise_level_weights(stds)
    assert math.fsum(weights) / len(weights) == pytest.approx(1.0)
    np.testing.assert_allclose(np.array(weights) * stds[0], np.array(stds) * weights[0], rtol=1e-9)


@given(st.integers(2, 60), st.floats(0.2, 8.0))
def test_weights_by_length_even_steps_out_and_are_one_on_average(num_steps: int, shift: float) -> None:
    sigmas = reference.shifted_schedule(num_steps, shift).tolist()
    weights = inverse_step_weights(sigmas)
    assert len(weights) == num_steps
    assert math.fsum(weights) / num_steps == pytest.approx(1.0)
    products = [weight * (now - after) for weight, (now, after) in zip(weights, pairwise(sigmas), strict=True)]
    np.testing.assert_allclose(products, products[0], rtol=1e-9)


@pytest.mark.parametrize("stds", [[], [0.1, 0.0], [0.1, -0.2], [math.nan]])
def test_steps_without_noise_have_no_weight(stds: list[float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        noise_level_weights(stds)


@pytest.mark.parametrize("sigmas", [[1.0, 0.5, 0.5, 0.0], [0.0, 1.0], [1.0, math.nan], [1.0], []])
def test_sigmas_that_do_not_fall_have_no_weights(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"fall|must be steps"):
        inverse_step_weights(sigmas)
