"""Group advantages against a loop over single groups, and the laws they must obey."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from parity import reference
from torch import Tensor

from mixgrpo.rl.advantages import advantage_shares, group_advantages

Mix = Literal["advantages", "rewards"]
mixes = pytest.mark.parametrize("mix", ["advantages", "rewards"])
UNCLIPPED = 1e9


@st.composite
def scores(draw: st.DrawFn, *, failures: bool = False) -> Tensor:
    """[P, G] scores on a coarse grid, so that groups are flat or clearly not; some of them NaN on request."""
    num_prompts, group_size = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    values = st.integers(-40, 40).map(lambda n: n / 8)
    if failures:
        values = st.one_of(values, st.just(math.nan))
    flat = draw(st.lists(values, min_size=num_prompts * group_size, max_size=num_prompts * group_size))
    return torch.tensor(flat, dtype=torch.float64).reshape(num_prompts, group_size)


@st.composite
def score_tables(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, float]]:
    first = draw(scores(failures=True))
    tables = {"ocr": first}
    for name in draw(st.sampled_from([[], ["colors"], ["colors", "jpeg"]])):
        tables[name] = torch.tensor(
            draw(
                st.lists(
                    st.one_of(st.integers(-9, 9).map(float), st.just(math.nan)),
                    min_size=first.numel(),
                    max_size=first.numel(),
                )
            ),
            dtype=torch.float64,
        ).reshape(first.shape)
    weights = {name: draw(st.sampled_from([0.0, 0.25, 1.0, 3.0])) for name in tables}
    assume(any(weights.values()))
    return tables, weights


@mixes
@given(score_tables(), st.sampled_from([0.5, 5.0, UNCLIPPED]))
def test_advantages_equal_those_of_groups_computed_one_by_one(
    mix: Mix, table: tuple[dict[str, Tensor], dict[str, float]], clip: float
) -> None:
    tables, weights = table
    expected = reference.advantages(
        {name: values.numpy() for name, values in tables.items()}, weights, mix=mix, clip=clip
    )
    result = group_advantages(tables, weights=weights, mix=mix, clip=clip)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@mixes
@given(scores(failures=True))
def test_advantages_of_a_group_sum_to_zero(mix: Mix, values: Tensor) -> None:
    result = group_advantages({"ocr": values}, mix=mix, clip=UNCLIPPED)
    assert result.sum(1).abs().max() < 1e-4


@mixes
@given(scores(failures=True), st.floats(-50, 50), st.floats(0.01, 100))
def test_advantages_do_not_change_when_scores_are_shifted_and_scaled(
    mix: Mix, values: Tensor, shift: float, scale: float
) -> None:
    plain = group_advantages({"ocr": values}, mix=mix)
    moved = group_advantages({"ocr": scale * values + shift}, mix=mix)
    torch.testing.assert_close(moved, plain, rtol=1e-4, atol=1e-4)


@given(scores())
def test_advantages_have_unit_spread_in_the_population_sense(values: Tensor) -> None:
    result = group_advantages({"ocr": values}, clip=UNCLIPPED)
    spread = result.square().mean(1)
    flat = (values == values[:, :1]).all(1)
    torch.testing.assert_close(spread[~flat], torch.ones_like(spread[~flat]))
    assert (result[flat] == 0).all()


@mixes
@given(st.floats(-1000, 1000, width=32), st.integers(2, 24), st.floats(0.1, 2.0))
def test_a_group_of_equal_scores_gets_exactly_zero(mix: Mix, score: float, group_size: int, weight: float) -> None:
    result = group_advantages(
        {"ocr": torch.full((2, group_size), score), "colors": torch.full((2, group_size), 0.1)},
        weights={"ocr": weight, "colors": 1.0},
        mix=mix,
    )
    assert torch.equal(result, torch.zeros(2, group_size))


@mixes
@given(scores(failures=True))
def test_samples_that_could_not_be_scored_count_for_nothing(mix: Mix, values: Tensor) -> None:
    result = group_advantages({"ocr": values}, mix=mix)
    assert (result[values.isnan()] == 0).all()
    for row, group in zip(result, values, strict=True):
        good = ~group.isnan()
        alone = group_advantages({"ocr": group[good][None]}, mix=mix) if good.any() else torch.zeros(1, 0)
        torch.testing.assert_close(row[good][None], alone)


@mixes
def test_a_failure_in_one_reward_masks_the_sample_in_all(mix: Mix) -> None:
    ocr = torch.tensor([[0.0, 1.0, 5.0, 3.0]])
    colors = torch.tensor([[1.0, 2.0, math.nan, 0.0]])
    result = group_advantages({"ocr": ocr, "colors": colors}, mix=mix)
    kept = torch.tensor([0, 1, 3])
    without = group_advantages({"ocr": ocr[:, kept], "colors": colors[:, kept]}, mix=mix)
    assert result[0, 2] == 0
    torch.testing.assert_close(result[:, kept], without)


@mixes
def test_a_failure_in_a_reward_of_weight_zero_changes_nothing(mix: Mix) -> None:
    ocr = torch.tensor([[0.0, 1.0, 5.0, 3.0]])
    watched = torch.tensor([[math.nan, 2.0, math.nan, 0.0]])
    result = group_advantages({"ocr": ocr, "watched": watched}, weights={"ocr": 1.0, "watched": 0.0}, mix=mix)
    torch.testing.assert_close(result, group_advantages({"ocr": ocr}, mix=mix))


@pytest.mark.parametrize("good", [0, 1])
def test_a_group_with_fewer_than_two_scored_samples_gets_zeros(good: int) -> None:
    values = torch.tensor([[0.0, 1.0, 2.0], [math.nan] * 3])
    values[1, :good] = 0.7
    result = group_advantages({"ocr": values})
    assert torch.equal(result[1], torch.zeros(3))
    torch.testing.assert_close(result[0], torch.tensor([-1.2247449, 0.0, 1.2247449]))


def test_groups_do_not_see_each_other() -> None:
    values = torch.tensor([[0.0, 1.0, 2.0], [100.0, 300.0, 200.0]])
    result = group_advantages({"ocr": values})
    torch.testing.assert_close(result[1], torch.tensor([-1.2247449, 1.2247449, 0.0]))


def test_mixing_advantages_ignores_the_scale_of_a_reward_and_mixing_rewards_does_not() -> None:
    """ocr rises over the group and colors falls; only the mix of rewards lets the larger scale win."""
    ocr, colors = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[200.0, 100.0, 0.0]])
    by_advantage = group_advantages({"ocr": ocr, "colors": colors}, mix="advantages")
    by_reward = group_advantages({"ocr": ocr, "colors": colors}, mix="rewards")
    torch.testing.assert_close(by_advantage, torch.zeros(1, 3))
    torch.testing.assert_close(by_reward, torch.tensor([[1.2247449, 0.0, -1.2247449]]))


def test_weights_scale_the_mixed_advantages_and_default_to_one() -> None:
    ocr, colors = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[2.0, 0.0, 1.0]])
    each = [group_advantages({"r": values}) for values in (ocr, colors)]
    both = {"ocr": ocr, "colors": colors}
    torch.testing.assert_close(group_advantages(both), each[0] + each[1])
    weighted = group_advantages(both, weights={"ocr": 0.5, "colors": 2.0})
    torch.testing.assert_close(weighted, 0.5 * each[0] + 2.0 * each[1])


def test_one_outlier_is_clipped_to_the_range() -> None:
    values = torch.zeros(1, 101)
    values[0, 3] = 1.0  # (1 - 1/101) / sqrt(1/101 - 1/101^2) = 10
    result = group_advantages({"ocr": values}, clip=5.0)
    assert result[0, 3] == 5.0
    assert group_advantages({"ocr": -values}, clip=2.5)[0, 3] == -2.5
    assert group_advantages({"ocr": values}, clip=UNCLIPPED)[0, 3].item() == pytest.approx(10.0)


@mixes
@given(scores(failures=True))
def test_advantages_are_finite_float32_and_within_the_clip_range(mix: Mix, values: Tensor) -> None:
    result = group_advantages({"ocr": values, "colors": values.nan_to_num() ** 2}, mix=mix, clip=1.5)
    assert result.dtype == torch.float32
    assert result.shape == values.shape
    assert result.isfinite().all()
    assert result.abs().max() <= 1.5


@pytest.mark.parametrize(
    ("tables", "weights"),
    [
        ({}, None),
        ({"ocr": torch.zeros(1, 2)}, {"ocr": -1.0}),
        ({"ocr": torch.zeros(1, 2)}, {"ocr": 0.0}),
        ({"ocr": torch.zeros(1, 2)}, {"colors": 1.0}),
    ],
)
def test_weights_that_do_not_fit_the_scores_are_refused(
    tables: dict[str, Tensor], weights: dict[str, float] | None
) -> None:
    with pytest.raises(ValueError, match="weight"):
        group_advantages(tables, weights=weights)


ORTHOGONAL = {"ocr": torch.tensor([[1.0, -1.0, 1.0, -1.0]]), "colors": torch.tensor([[1.0, 1.0, -1.0, -1.0]])}
SCALES = {"ocr": torch.tensor([[0.0, 3.0]]), "colors": torch.tensor([[0.0, 1.0]])}
OPPOSED = {"ocr": torch.tensor([[0.2, 0.4]]), "colors": torch.tensor([[0.9, 0.8]])}


@pytest.mark.parametrize(
    ("tables", "weights", "mix", "expected"),
    [
        # Advantages 1 and 1/2 at right angles: 1 and 1/4 of 5/4.
        (ORTHOGONAL, (1.0, 0.5), "advantages", (0.8, 0.2)),
        (ORTHOGONAL, (1.0, 0.5), "rewards", (0.8, 0.2)),
        # Normalised both are alike; as they are, one is three times as large.
        (SCALES, (1.0, 1.0), "advantages", (0.5, 0.5)),
        (SCALES, (1.0, 1.0), "rewards", (0.75, 0.25)),
        # A is half of what ocr alone would make it.
        (OPPOSED, (1.0, 0.5), "advantages", (2.0, -1.0)),
        (OPPOSED, (1.0, 0.0), "advantages", (1.0, 0.0)),
    ],
)
def test_shares_of_known_advantages(
    tables: dict[str, Tensor], weights: tuple[float, float], mix: Mix, expected: tuple[float, float]
) -> None:
    found = advantage_shares(tables, weights=dict(zip(tables, weights, strict=True)), mix=mix)
    assert list(found.values()) == pytest.approx(list(expected), abs=1e-6)


@mixes
@pytest.mark.parametrize("std", ["group", "batch"])
@given(score_tables())
def test_shares_sum_to_one_and_are_projections_on_the_advantage(
    mix: Mix, std: Literal["group", "batch"], table: tuple[dict[str, Tensor], dict[str, float]]
) -> None:
    """With normalised rewards, a reward's part of the advantage is the advantage it gives alone, times its weight."""
    tables, weights = table
    whole = group_advantages(tables, weights=weights, mix=mix, std=std, clip=UNCLIPPED).double()
    found = advantage_shares(tables, weights=weights, mix=mix, std=std)
    if not whole.any():
        assert found == {}
        return
    assert list(found) == list(tables)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)
    assert all(found[name] == 0.0 for name, weight in weights.items() if weight == 0.0)
    if mix == "advantages":
        scored = torch.stack([tables[name].isfinite() for name in tables if weights[name]]).all(0)
        for name, weight in weights.items():
            masked = torch.where(scored, tables[name], math.nan)
            if weight:
                alone = weight * group_advantages({name: masked}, std=std, clip=UNCLIPPED).double()
                expected = (alone * whole).sum() / whole.square().sum()
                assert found[name] == pytest.approx(expected.item(), abs=1e-4)


def test_without_any_spread_there_are_no_shares() -> None:
    assert advantage_shares({"ocr": torch.ones(2, 3), "colors": torch.zeros(2, 3)}) == {}
