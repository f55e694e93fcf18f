"""What happens to advantages after their group: the batch's spread, quasi-norms, and which samples are worth calls."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixgrpo.rl.advantages import carries_signal, group_advantages, quasi_norm

UNCLIPPED = 1e9
coarse = st.integers(-40, 40).map(lambda n: n / 8)


@st.composite
def tables(draw: st.DrawFn, *, failures: bool = False) -> Tensor:
    """[P, G] values on a coarse grid, some of them NaN on request."""
    shape = draw(st.integers(1, 4)), draw(st.integers(2, 8))
    values = st.one_of(coarse, st.just(math.nan)) if failures else coarse
    flat = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(flat, dtype=torch.float64).reshape(shape)


def by_batch(scores: Tensor, weight: float = 1.0) -> np.ndarray:
    """(R - mean of its group) / population standard deviation of all raw scores."""
    table = scores.numpy()
    spread = np.std(table[np.isfinite(table)]) if np.isfinite(table).any() else 1.0
    result = np.zeros(table.shape)
    for p, row in enumerate(table):
        good = np.isfinite(row)
        if len(set(row[good])) > 1:
            result[p, good] = weight * (row[good] - row[good].mean()) / spread
    return result


@given(tables(failures=True))
def test_batch_spread_is_that_of_all_raw_scores_and_the_mean_that_of_the_group(values: Tensor) -> None:
    result = group_advantages({"ocr": values}, std="batch", clip=UNCLIPPED)
    np.testing.assert_allclose(result, by_batch(values), rtol=1e-5, atol=1e-6)


def test_batch_spread_counts_flat_groups_and_differences_between_prompts() -> None:
    """Scores 0, 2 and 6, 6: the population standard deviation is that of all four, sqrt(27 / 4)."""
    values = torch.tensor([[0.0, 2.0], [6.0, 6.0]])
    result = group_advantages({"ocr": values}, std="batch")
    expected = 1.0 / math.sqrt(27 / 4)
    torch.testing.assert_close(result, torch.tensor([[-expected, expected], [0.0, 0.0]]))


@given(tables(failures=True), st.floats(0.25, 4.0))
def test_batch_spread_of_several_rewards_is_each_ones_own_or_that_of_their_sum(values: Tensor, weight: float) -> None:
    other = values.flip(1) ** 2
    both = values.isnan() | other.isnan()
    first, second = (torch.where(both, math.nan, table) for table in (values, other))
    weights = {"ocr": weight, "colors": 1.0}
    scores = {"ocr": values, "colors": other}
    each = group_advantages(scores, weights=weights, std="batch", clip=UNCLIPPED)
    np.testing.assert_allclose(each, by_batch(first, weight) + by_batch(second), rtol=1e-4, atol=1e-5)
    total = group_advantages(scores, weights=weights, std="batch", mix="rewards", clip=UNCLIPPED)
    np.testing.assert_allclose(total, by_batch(weight * first + second), rtol=1e-4, atol=1e-5)


@given(tables(), st.sampled_from([0.5, 0.8, 1.0, 2.0, 3.0]))
def test_quasi_norm_divides_every_group_by_its_own(values: Tensor, power: float) -> None:
    result = quasi_norm(values.float(), power=power)
    for row, group in zip(result.tolist(), values.tolist(), strict=True):
        norm = math.fsum(abs(a) ** power for a in group) ** (1 / power)
        expected = [math.sqrt(len(group)) * a / norm if norm else 0.0 for a in group]
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-7)
    assert result.dtype == torch.float32


@given(tables())
def test_quasi_norm_at_power_two_leaves_normalised_advantages_as_they_are(values: Tensor) -> None:
    plain = group_advantages({"ocr": values}, clip=UNCLIPPED)
    torch.testing.assert_close(quasi_norm(plain, power=2.0), plain, rtol=1e-5, atol=1e-6)


@given(tables(), st.floats(1e-3, 1e3), st.sampled_from([0.5, 0.8, 2.0]))
def test_quasi_norm_does_not_see_the_scale(values: Tensor, scale: float, power: float) -> None:
    plain = quasi_norm(values.float(), power=power)
    torch.testing.assert_close(quasi_norm((scale * values).float(), power=power), plain, rtol=1e-4, atol=1e-5)


def test_quasi_norm_damps_groups_in_which_many_differ_a_little() -> None:
    many, few = torch.tensor([[1.0, -1.0] * 4]), torch.tensor([[2.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    sizes = [quasi_norm(group, power=0.8).norm().item() for group in (many, few)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize("power", [0.0, -1.0, math.nan])
def test_power_must_be_positive(power: float) -> None:
    with pytest.raises(ValueError, match="power"):
        quasi_norm(torch.zeros(1, 2), power=power)


@given(tables(), st.integers(0, 4), st.sampled_from([0.0, 0.125, 0.5, 2.0]))
def test_best_and_worst_are_kept_if_they_are_far_enough_from_zero(
    values: Tensor, extremes: int, threshold: float
) -> None:
    extremes = min(extremes, values.shape[1] // 2)
    kept = carries_signal(values.float(), extremes=extremes, threshold=threshold)
    for marks, group in zip(kept.tolist(), values.tolist(), strict=True):
        ranked = sorted(range(len(group)), key=lambda g: group[g])  # stable: of equals, the earlier is the worse
        chosen = set(ranked[:extremes] + ranked[len(group) - extremes :]) if extremes else set(ranked)
        assert {g for g, mark in enumerate(marks) if mark} == {g for g in chosen if abs(group[g]) >= threshold}


def test_all_samples_are_kept_by_default_and_a_nan_is_kept_to_be_noticed() -> None:
    values = torch.tensor([[0.0, math.nan, 1.0, -1.0]])
    assert carries_signal(values).all()
    assert carries_signal(values, threshold=0.5).tolist() == [[False, True, True, True]]


def test_a_sample_on_the_threshold_is_kept() -> None:
    values = torch.tensor([[0.25, -0.25, 0.125, -0.125]])
    assert carries_signal(values, threshold=0.25).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(("extremes", "threshold"), [(3, 0.0), (-1, 0.0), (1, -0.1)])
def test_signals_that_cannot_be_are_refused(extremes: int, threshold: float) -> None:
    with pytest.raises(ValueError, match=r"extremes|threshold"):
        carries_signal(torch.zeros(2, 5), extremes=extremes, threshold=threshold)
