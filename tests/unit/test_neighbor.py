"""The softmax over neighbours against numpy, and what must not change it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity.reference import Array
from torch import Tensor

from mixgrpo.rl.neighbor import neighbor_log_prob

BATCH, GROUP, LATENT = 3, 5, (2, 3)


def by_hand(prediction: Array, candidates: Array, temperature: float) -> Array:
    """log softmax_i(-d_i / (temperature c)), d and c mean squares over dims, c over all pairs of different members."""
    rows = []
    for point, group in zip(prediction, candidates, strict=True):
        pairs = [np.mean((a - b) ** 2) for i, a in enumerate(group) for j, b in enumerate(group) if i != j]
        scores = np.array([-np.mean((c - point) ** 2) for c in group]) / (temperature * np.mean(pairs))
        rows.append(scores - np.log(np.exp(scores).sum()))
    return np.stack(rows)


def drawn(group: int = GROUP) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randn(BATCH, group, *LATENT, generator=generator, dtype=torch.float64)
    near = candidates[:, 1] + 0.3 * torch.randn(BATCH, *LATENT, generator=generator, dtype=torch.float64)
    return near, candidates


@pytest.mark.parametrize("temperature", [0.05, 1.0, 7.0])
@pytest.mark.parametrize("group", [2, 5])
def test_log_softmax_equals_the_formula(temperature: float, group: int) -> None:
    prediction, candidates = drawn(group)
    result = neighbor_log_prob(prediction, candidates, temperature=temperature)
    np.testing.assert_allclose(
        result, by_hand(prediction.numpy(), candidates.numpy(), temperature), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(result.exp().sum(1), 1.0, rtol=1e-12)
    assert (result.argmax(1) == 1).all()


def test_gradient_pulls_the_prediction_from_the_groups_centre_to_the_candidate() -> None:
    """d log p_i / d y = 2 / (temperature c d) (x_i - sum_k p_k x_k); the temperature's unit is held."""
    prediction, candidates = drawn()
    prediction.requires_grad_()
    result = neighbor_log_prob(prediction, candidates, temperature=0.8)
    weights = result.detach().exp()
    for i in range(GROUP):
        (gradient,) = torch.autograd.grad(result[:, i].sum(), [prediction], retain_graph=True)
        centre = (weights[:, :, None, None] * candidates).sum(1)
        pairs = (candidates[:, :, None] - candidates[:, None]).square().mean((-2, -1)).sum((1, 2))
        unit = (pairs / (GROUP * (GROUP - 1)))[:, None, None]
        torch.testing.assert_close(gradient, 2.0 / (0.8 * unit * 6) * (candidates[:, i] - centre), rtol=1e-9, atol=0)


@given(st.permutations(range(GROUP)))
def test_candidates_may_be_told_in_any_order(order: list[int]) -> None:
    prediction, candidates = drawn()
    result = neighbor_log_prob(prediction, candidates, temperature=1.0)
    moved = neighbor_log_prob(prediction, candidates[:, order], temperature=1.0)
    torch.testing.assert_close(moved, result[:, order], rtol=1e-9, atol=1e-12)


@given(st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_scale_and_place_of_the_latents_change_nothing(scale: float, shift: float) -> None:
    prediction, candidates = drawn()
    result = neighbor_log_prob(prediction, candidates, temperature=0.5)
    moved = neighbor_log_prob(scale * prediction + shift, scale * candidates + shift, temperature=0.5)
    torch.testing.assert_close(moved, result, rtol=1e-6, atol=1e-8)


def test_groups_and_the_number_of_dimensions_do_not_matter_to_each_other() -> None:
    prediction, candidates = drawn()
    result = neighbor_log_prob(prediction, candidates, temperature=1.0)
    alone = neighbor_log_prob(prediction[1:2], candidates[1:2], temperature=1.0)
    torch.testing.assert_close(result[1:2], alone)
    twice = neighbor_log_prob(prediction.repeat(1, 1, 2), candidates.repeat(1, 1, 1, 2), temperature=1.0)
    torch.testing.assert_close(twice, result)


def test_a_typical_neighbour_is_e_times_less_likely_than_a_hit_at_temperature_one() -> None:
    """In high dimension all members are equally far apart."""
    candidates = torch.randn(1, 6, 40_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = neighbor_log_prob(candidates[:, 2], candidates, temperature=1.0)[0]
    others = [result[i].item() for i in range(6) if i != 2]
    np.testing.assert_allclose([result[2].item() - other for other in others], 1.0, atol=0.05)


def test_members_that_are_one_picture_are_equally_likely() -> None:
    candidates = torch.ones(2, 4, 3)
    result = neighbor_log_prob(torch.zeros(2, 3), candidates, temperature=1.0)
    torch.testing.assert_close(result, torch.full((2, 4), -math.log(4.0)))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        neighbor_log_prob(torch.zeros(1, 2), torch.zeros(1, 3, 2), temperature=temperature)


def test_a_single_candidate_is_no_neighbourhood() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        neighbor_log_prob(torch.zeros(1, 2), torch.zeros(1, 1, 2), temperature=1.0)
