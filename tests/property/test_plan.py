"""Schedules and plans: sigmas fall from 1 to exactly 0, Flash changes only the tail, calls add up."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import reference

from mixgrpo.flow.plan import plan_trajectory
from mixgrpo.flow.sigmas import shifted_sigmas, sigmas_from

shifts = st.floats(0.1, 12.0)
ratios = st.floats(0.01, 1.0)
group_sizes = st.integers(1, 24)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, range]:
    """Steps T and a window that fits, or an empty one."""
    num_steps = draw(st.integers(2, 80))
    size = draw(st.integers(0, num_steps - 1))
    start = draw(st.integers(0, num_steps - 1 - size)) if size else 0
    return num_steps, range(start, start + size)


@given(st.integers(1, 200), shifts)
def test_shifted_sigmas_fall_strictly_from_one_to_exactly_zero(num_steps: int, shift: float) -> None:
    sigmas = shifted_sigmas(num_steps, shift)
    assert len(sigmas) == num_steps + 1
    assert (sigmas[0], sigmas[-1]) == (1.0, 0.0)
    assert all(before > after for before, after in pairwise(sigmas))
    np.testing.assert_allclose(sigmas, reference.shifted_schedule(num_steps, shift), rtol=0, atol=1e-14)


def test_first_sigma_after_noise_of_the_papers_schedule_is_known() -> None:
    assert shifted_sigmas(25, 3.0)[1] == pytest.approx(0.9863, abs=5e-5)
    assert shifted_sigmas(4) == (1.0, 0.75, 0.5, 0.25, 0.0)


@given(num_steps=st.integers(1, 60), done=st.integers(0, 59), shift=st.floats(0.2, 8.0))
def test_a_schedule_from_one_of_its_own_sigmas_is_the_rest_of_it(num_steps: int, done: int, shift: float) -> None:
    sigmas, done = shifted_sigmas(num_steps, shift), min(done, num_steps - 1)
    rest = sigmas_from(sigmas[done], num_steps - done, shift)
    assert rest[0] == sigmas[done]
    assert rest[-1] == 0.0
    assert rest == pytest.approx(sigmas[done:], abs=1e-12)


@pytest.mark.parametrize(("sigma", "shift"), [(0.0, 3.0), (1.1, 3.0), (-0.5, 3.0), (0.5, 0.0), (0.5, -1.0)])
def test_a_schedule_from_an_impossible_sigma_is_refused(sigma: float, shift: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        sigmas_from(sigma, 4, shift)


@pytest.mark.parametrize(("num_steps", "shift"), [(0, 3.0), (-1, 3.0), (5, 0.0), (5, -1.0), (5, float("nan"))])
def test_impossible_schedules_are_refused(num_steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match=r"num_steps|shift"):
        shifted_sigmas(num_steps, shift)


@given(layouts(), shifts, ratios)
def test_sigmas_of_a_plan_fall_strictly_from_one_to_exactly_zero(
    layout: tuple[int, range], shift: float, ratio: float
) -> None:
    num_steps, window = layout
    plan = plan_trajectory(num_steps=num_steps, shift=shift, window=window, tail_ratio=ratio)
    assert (plan.sigmas[0], plan.sigmas[-1]) == (1.0, 0.0)
    assert len(plan.sigmas) == plan.num_steps + 1
    assert all(before > after for before, after in pairwise(plan.sigmas))


@given(layouts(), shifts, ratios)
def test_flash_tail_leaves_everything_up_to_the_windows_end_as_it_was(
    layout: tuple[int, range], shift: float, ratio: float
) -> None:
    num_steps, window = layout
    plan = plan_trajectory(num_steps=num_steps, shift=shift, window=window, tail_ratio=ratio)
    end = window.stop if window else 0
    assert plan.window == window
    assert plan.sigmas[: end + 1] == shifted_sigmas(num_steps, shift)[: end + 1]
    exact = (num_steps - end) * ratio
    tail = plan.num_steps - end
    assert tail >= 1
    assert tail == 1 or abs(tail - exact) <= 0.5 + 1e-9
    expected = reference.flash_schedule(num_steps, shift, end, tail)
    np.testing.assert_allclose(plan.sigmas, expected, rtol=0, atol=1e-12)


@given(layouts(), shifts)
def test_plan_without_flash_is_the_schedule(layout: tuple[int, range], shift: float) -> None:
    num_steps, window = layout
    plan = plan_trajectory(num_steps=num_steps, shift=shift, window=window)
    assert plan.sigmas == shifted_sigmas(num_steps, shift)


@given(layouts(), ratios, group_sizes)
def test_sampling_calls_count_shared_steps_once_for_a_group(
    layout: tuple[int, range], ratio: float, group_size: int
) -> None:
    """Steps before the window and the window's first are one call for all; with no window all of them are."""
    num_steps, window = layout
    plan = plan_trajectory(num_steps=num_steps, shift=3.0, window=window, tail_ratio=ratio)
    calls_of_a_group = sum(1 if not window or step <= window.start else group_size for step in range(plan.num_steps))
    assert plan.nfe(group_size, True) * group_size == pytest.approx(calls_of_a_group)
    assert plan.nfe(group_size, False) == plan.num_steps


@given(layouts(), group_sizes, st.data())
def test_update_calls_count_the_windows_first_step_once_for_a_share(
    layout: tuple[int, range], group_size: int, data: st.DataObject
) -> None:
    num_steps, window = layout
    plan = plan_trajectory(num_steps=num_steps, shift=3.0, window=window)
    every = sum(1 if step == window.start else group_size for step in window)
    assert plan.update_nfe(group_size, True) * group_size == pytest.approx(every)
    assert plan.update_nfe(group_size, False) == len(window)
    trained = tuple(sorted(data.draw(st.sets(st.sampled_from(window))))) if window else ()
    some = sum(1 if step == window.start else group_size for step in trained)
    assert plan.update_nfe(group_size, True, trained) * group_size == pytest.approx(some)
    assert plan.update_nfe(group_size, False, trained) == len(trained)


@pytest.mark.parametrize("start", [0, 6, 21])
def test_calls_of_the_papers_setting_are_known(start: int) -> None:
    """T = 25, w = 4, 12 samples: sampling (l + 1)/12 + (24 - l) instead of 25, updating 1/12 + 3, not 4."""
    plan = plan_trajectory(num_steps=25, shift=3.0, window=range(start, min(start + 4, 24)))
    assert plan.nfe(12, True) == pytest.approx((start + 1) / 12 + 24 - start)
    assert plan.nfe(12, False) == 25
    assert plan.update_nfe(12, True) == pytest.approx(1 / 12 + len(plan.window) - 1)


@pytest.mark.parametrize(("ratio", "calls"), [(0.4, 12), (0.3, 10), (0.2, 8)])
def test_flash_with_a_frozen_window_takes_the_papers_numbers_of_calls(ratio: float, calls: int) -> None:
    plan = plan_trajectory(num_steps=25, shift=3.0, window=range(4), tail_ratio=ratio)
    assert plan.nfe(12, False) == plan.num_steps == calls
    assert plan.nfe(12, True) == pytest.approx(1 / 12 + calls - 1)


@pytest.mark.parametrize(("ratio", "calls"), [(0.6, 19.4), (0.4, 16.6), (0.2, 13.8)])
def test_flash_takes_the_papers_average_number_of_calls(ratio: float, calls: float) -> None:
    """Window starts 0 to 14, as 300 iterations of interval 20 visit them."""
    plans = [
        plan_trajectory(num_steps=25, shift=3.0, window=range(start, start + 4), tail_ratio=ratio)
        for start in range(15)
    ]
    assert sum(plan.nfe(12, False) for plan in plans) / 15 == pytest.approx(calls, abs=0.1)


@pytest.mark.parametrize("window", [range(-1, 2), range(7, 10), range(9, 10), range(0, 6, 2), range(0, 10)])
def test_window_that_leaves_the_trajectory_is_refused(window: range) -> None:
    with pytest.raises(ValueError, match="window"):
        plan_trajectory(num_steps=10, shift=3.0, window=window)


def compressed_by_hand(num_steps: int, shift: float, first: int, last: int, count: int) -> list[float]:
    """`count` steps from grid point `first` to `last`, even in time, shifted."""
    u = np.linspace(1.0 - first / num_steps, 1.0 - last / num_steps, count + 1)
    return list(shift * u / (1.0 + (shift - 1.0) * u))


@given(layouts(), shifts, ratios, ratios, st.sampled_from([1, 2, 3]))
def test_compressed_head_moves_the_window_and_leaves_its_sigmas(
    layout: tuple[int, range], shift: float, head_ratio: float, tail_ratio: float, order: int
) -> None:
    num_steps, window = layout
    plan = plan_trajectory(
        num_steps=num_steps,
        shift=shift,
        window=window,
        head_ratio=head_ratio,
        tail_ratio=tail_ratio,
        tail_order=order,
    )
    full, start = shifted_sigmas(num_steps, shift), window.start if window else 0
    assert (plan.sigmas[0], plan.sigmas[-1]) == (1.0, 0.0)
    assert all(before > after for before, after in pairwise(plan.sigmas))
    head = plan.window.start
    assert plan.offset == start - head >= 0
    assert len(plan.window) == len(window)
    assert plan.sigmas[head : plan.window.stop + 1] == full[start : start + len(window) + 1]
    assert head == 0 if start == 0 else head == 1 or abs(head - start * head_ratio) <= 0.5 + 1e-9
    np.testing.assert_allclose(
        plan.sigmas[: head + 1], compressed_by_hand(num_steps, shift, 0, start, head), rtol=0, atol=1e-12
    )
    uncompressed = plan_trajectory(
        num_steps=num_steps, shift=shift, window=window, tail_ratio=tail_ratio, tail_order=order
    )
    assert plan.sigmas[head:] == uncompressed.sigmas[start:]
    assert plan.tail_order == order
    assert (plan.head_order, uncompressed.head_order) == (order if head_ratio < 1.0 else 1, 1)


@given(layouts(), ratios, ratios, group_sizes)
def test_calls_of_a_compressed_head_are_counted_as_they_are_taken(
    layout: tuple[int, range], head_ratio: float, tail_ratio: float, group_size: int
) -> None:
    num_steps, window = layout
    plan = plan_trajectory(num_steps=num_steps, shift=3.0, window=window, head_ratio=head_ratio, tail_ratio=tail_ratio)
    of_a_group = sum(1 if not window or step <= plan.window.start else group_size for step in range(plan.num_steps))
    assert plan.nfe(group_size, True) * group_size == pytest.approx(of_a_group)
    assert plan.nfe(group_size, False) == plan.num_steps
    every = sum(1 if step == plan.window.start else group_size for step in plan.window)
    assert plan.update_nfe(group_size, True) * group_size == pytest.approx(every)


def test_dual_compression_of_the_papers_schedule_is_known() -> None:
    """T = 25, window 10 to 13, ratio 0.4: 4 steps before it and 4 after it."""
    plan = plan_trajectory(num_steps=25, shift=3.0, window=range(10, 14), head_ratio=0.4, tail_ratio=0.4, tail_order=2)
    assert (plan.window, plan.offset, plan.num_steps) == (range(4, 8), 6, 12)
    assert (plan.head_order, plan.tail_order) == (2, 2)


@pytest.mark.parametrize("name", ["tail_ratio", "head_ratio"])
@pytest.mark.parametrize("ratio", [0.0, -0.2, 1.2, float("nan")])
def test_ratio_outside_its_range_is_refused(name: str, ratio: float) -> None:
    with pytest.raises(ValueError, match=name):
        plan_trajectory(num_steps=10, shift=3.0, window=range(1, 3), **{name: ratio})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("order", [0, 4])
def test_a_solver_of_another_order_is_refused(order: int) -> None:
    with pytest.raises(ValueError, match="tail_order"):
        plan_trajectory(num_steps=10, shift=3.0, window=range(2), tail_order=order)
