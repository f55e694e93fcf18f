"""Windows: pure functions of the iteration, never empty, never short, never on the last step."""

import math
from itertools import count, groupby, pairwise, takewhile
from typing import Any, Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mixgrpo.rl.window import (
    AllSteps,
    DecayingWindow,
    FrozenWindow,
    RandomWindow,
    SlidingWindow,
    Window,
    trained_steps,
)

AfterLast = Literal["restart", "stay"]
Decay = Literal["exponential", "linear"]
after_last: st.SearchStrategy[AfterLast] = st.sampled_from(["restart", "stay"])
decays: st.SearchStrategy[Decay] = st.sampled_from(["exponential", "linear"])
iterations = st.integers(0, 10_000)


@st.composite
def sizes(draw: st.DrawFn, largest: int = 60) -> tuple[int, int]:
    """Steps T and a window size that fits."""
    num_steps = draw(st.integers(2, largest))
    return num_steps, draw(st.integers(1, num_steps - 1))


@st.composite
def windows(draw: st.DrawFn) -> Window:
    num_steps, size = draw(sizes())
    stride, interval = draw(st.integers(1, 10)), draw(st.integers(1, 40))
    match draw(st.sampled_from(["sliding", "decaying", "frozen", "random", "all"])):
        case "sliding":
            return SlidingWindow(
                num_steps=num_steps, size=size, stride=stride, interval=interval, after_last=draw(after_last)
            )
        case "decaying":
            return DecayingWindow(
                num_steps=num_steps,
                size=size,
                stride=stride,
                interval=interval,
                decay=draw(decays),
                rate=draw(st.floats(0.01, 3.0)),
                threshold=draw(st.integers(0, 30)),
                after_last=draw(after_last),
            )
        case "frozen":
            return FrozenWindow(num_steps=num_steps, size=size, start=draw(st.integers(0, num_steps - 1 - size)))
        case "random":
            return RandomWindow(num_steps=num_steps, size=size, seed=draw(st.integers(0, 2**32)))
        case _:
            return AllSteps(num_steps=num_steps, trained_fraction=draw(st.floats(0.01, 1.0)))


@given(windows(), iterations)
def test_window_is_full_and_ends_before_the_last_step(window: Window, iteration: int) -> None:
    steps = window.at(iteration)
    size = window.num_steps - 1 if isinstance(window, AllSteps) else window.size
    assert list(steps) == list(range(steps.start, steps.start + size))
    assert steps.start >= 0
    assert steps[-1] <= window.num_steps - 2


@given(windows(), st.lists(iterations, min_size=1, max_size=5))
def test_window_depends_on_nothing_but_the_iteration(window: Window, asked: list[int]) -> None:
    first = [window.at(iteration) for iteration in asked]
    again = [window.at(iteration) for iteration in reversed(asked)]
    assert first == again[::-1]


@given(sizes(), st.integers(1, 6), st.integers(1, 30), after_last)
def test_sliding_window_stays_for_an_interval_then_moves_by_a_stride(
    fit: tuple[int, int], stride: int, interval: int, after: AfterLast
) -> None:
    num_steps, size = fit
    window = SlidingWindow(num_steps=num_steps, size=size, stride=stride, interval=interval, after_last=after)
    starts = [window.at(iteration).start for iteration in range(3 * interval)]
    assert starts[0] == 0
    assert all(len(set(starts[i : i + interval])) == 1 for i in (0, interval, 2 * interval))
    assert starts[interval] == min(stride, num_steps - 1 - size)


@given(sizes(), st.integers(1, 6), st.integers(1, 5))
def test_sliding_window_reaches_every_step_when_its_stride_leaves_no_gap(
    fit: tuple[int, int], stride: int, interval: int
) -> None:
    """The last move is cut short where the stride does not divide: l = min(l + s, last), as in the paper."""
    num_steps, size = fit
    assume(stride <= size)
    window = SlidingWindow(num_steps=num_steps, size=size, stride=stride, interval=interval)
    positions = math.ceil((num_steps - 1 - size) / stride) + 1
    visited = {step for iteration in range(positions * interval) for step in window.at(iteration)}
    assert visited == set(range(num_steps - 1))


@pytest.mark.parametrize(
    ("stride", "starts"),
    [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (4, [0, 4, 5]), (5, [0, 5]), (9, [0, 5])],
)
def test_sliding_window_visits_known_starts(stride: int, starts: list[int]) -> None:
    window = SlidingWindow(num_steps=9, size=3, stride=stride, interval=2, after_last="restart")
    assert [window.at(2 * i).start for i in range(len(starts) + 1)] == [*starts, 0]


@given(sizes(), st.integers(1, 6), st.integers(1, 5), st.booleans(), iterations)
def test_after_the_last_position_a_window_starts_over_or_stays(
    fit: tuple[int, int], stride: int, interval: int, decaying: bool, iteration: int
) -> None:
    num_steps, size = fit
    kind = DecayingWindow if decaying else SlidingWindow
    restart, stay = (
        kind(num_steps=num_steps, size=size, stride=stride, interval=interval, after_last=after)
        for after in ("restart", "stay")
    )
    far = stay.at(10**6)
    assert far.stop == num_steps - 1
    reached = next(i for i in range(10**6) if stay.at(i) == far)
    assert all(stay.at(reached + i) == far for i in (1, interval, 97))
    assert [restart.at(i) for i in range(reached + 1)] == [stay.at(i) for i in range(reached + 1)]
    period = next(i for i in range(reached + 1, 10**6) if restart.at(i) != far) if far.start else interval
    assert restart.at(iteration % period) == restart.at(iteration)
    assert restart.at(period).start == 0


def stays(window: DecayingWindow) -> list[tuple[int, int]]:
    """(start, iterations spent there) of every position but the last, where the window stays for ever."""
    last = window.at(10**6).start
    starts = takewhile(lambda start: start != last, (window.at(i).start for i in count()))
    return [(start, len(list(run))) for start, run in groupby(starts)]


@given(sizes(20), st.integers(1, 3), st.integers(1, 30), st.floats(0.01, 2.0), st.integers(0, 20))
def test_exponential_decay_follows_its_formula(
    fit: tuple[int, int], stride: int, interval: int, rate: float, threshold: int
) -> None:
    num_steps, size = fit
    window = DecayingWindow(
        num_steps=num_steps,
        size=size,
        stride=stride,
        interval=interval,
        rate=rate,
        threshold=threshold,
        after_last="stay",
    )
    for start, iterations_there in stays(window):
        assert iterations_there == math.ceil(interval * math.exp(-rate * max(0, start - threshold)))


def test_exponential_decay_of_the_paper_has_known_intervals() -> None:
    """tau_0 = 25, k = 0.1, threshold 13: 25 up to start 13, then ceil(22.62), ceil(20.47), ..."""
    window = DecayingWindow(num_steps=25, size=4, after_last="stay")
    assert [iterations for _, iterations in stays(window)] == [25] * 14 + [23, 21, 19, 17, 16, 14]


@given(sizes(16), st.integers(1, 20), decays)
def test_intervals_of_a_decaying_window_never_grow_and_never_vanish(
    fit: tuple[int, int], interval: int, decay: Decay
) -> None:
    num_steps, size = fit
    window = DecayingWindow(
        num_steps=num_steps, size=size, interval=interval, decay=decay, threshold=2, after_last="stay"
    )
    starts_and_intervals = stays(window)
    intervals = [iterations for _, iterations in starts_and_intervals]
    assert [start for start, _ in starts_and_intervals] == list(range(num_steps - 1 - size))
    assert intervals[:1] in ([], [interval])
    assert all(before >= after >= 1 for before, after in pairwise(intervals))


@given(sizes(16), st.integers(1, 30))
def test_linear_decay_falls_by_the_same_amount_at_every_position(fit: tuple[int, int], interval: int) -> None:
    num_steps, size = fit
    window = DecayingWindow(num_steps=num_steps, size=size, interval=interval, decay="linear", after_last="stay")
    intervals = [iterations for _, iterations in stays(window)]
    slope = interval / (num_steps - size)
    assert all(math.isclose(tau, interval - slope * i, abs_tol=1.0) for i, tau in enumerate(intervals))


@given(sizes(), st.integers(0, 2**63), iterations)
def test_random_window_is_the_same_for_the_same_seed(fit: tuple[int, int], seed: int, iteration: int) -> None:
    num_steps, size = fit
    one, other = (RandomWindow(num_steps=num_steps, size=size, seed=seed) for _ in range(2))
    assert one.at(iteration) == other.at(iteration)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_random_window_visits_every_place_about_equally_often(seed: int) -> None:
    window = RandomWindow(num_steps=25, size=4, seed=seed)
    counts = [0] * 21
    for iteration in range(4200):
        counts[window.at(iteration).start] += 1
    chi_square = sum((count - 200) ** 2 / 200 for count in counts)
    assert chi_square < 45.3  # 99.9 % of a chi-square with 20 degrees of freedom lie below


def test_random_windows_of_different_seeds_and_iterations_differ() -> None:
    places = [[RandomWindow(num_steps=25, size=4, seed=s).at(i).start for i in range(50)] for s in range(4)]
    assert len({tuple(row) for row in places}) == 4
    assert all(len(set(row)) > 10 for row in places)


@given(sizes(), st.floats(0.01, 1.0), st.integers(0, 2**32))
def test_random_window_stays_within_its_reach(fit: tuple[int, int], reach: float, seed: int) -> None:
    num_steps, size = fit
    window = RandomWindow(num_steps=num_steps, size=size, seed=seed, reach=reach)
    places = num_steps - size
    last = max(1, round(reach * places)) - 1
    visited = {window.at(iteration).start for iteration in range(40)}
    assert min(visited) >= 0
    assert max(visited) <= last
    assert all(len(window.at(iteration)) == size for iteration in range(40))


def test_random_window_of_half_the_reach_visits_the_noisier_half_evenly() -> None:
    window = RandomWindow(num_steps=11, size=1, seed=0, reach=0.5)
    starts = [window.at(iteration).start for iteration in range(1000)]
    assert {starts.count(start) > 150 for start in range(5)} == {True}
    assert max(starts) == 4


@given(st.integers(2, 40), st.integers(0, 2**32), iterations, st.data())
def test_number_of_trained_steps_can_be_told(num_steps: int, seed: int, iteration: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, num_steps - 1))
    drawn = AllSteps(num_steps=num_steps, num_trained=number, seed=seed, trained_fraction=0.3).trained(iteration)
    assert len(set(drawn)) == len(drawn) == number
    assert list(drawn) == sorted(drawn)
    assert set(drawn) <= set(range(num_steps - 1))
    first = AllSteps(num_steps=num_steps, num_trained=number, seed=seed, choice="first").trained(iteration)
    assert first == tuple(range(number))


def test_first_steps_are_trained_by_fraction_as_well() -> None:
    window = AllSteps(num_steps=25, trained_fraction=0.6, choice="first")
    assert trained_steps(window, 7) == tuple(range(14))
    assert window.at(7) == range(24)
    assert trained_steps(SlidingWindow(num_steps=9, size=3, interval=2), 4) == (2, 3, 4)


@pytest.mark.parametrize("settings", [{"num_trained": 9}, {"num_trained": -1}, {"trained_fraction": 0.0}])
def test_trained_steps_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        AllSteps(num_steps=9, **settings)
    assert AllSteps(num_steps=9, num_trained=8).trained(0) == tuple(range(8))


@pytest.mark.parametrize("reach", [0.0, -0.5, 1.5, math.nan])
def test_reach_must_be_a_share(reach: float) -> None:
    with pytest.raises(ValueError, match="reach"):
        RandomWindow(num_steps=9, size=2, seed=0, reach=reach)


@given(st.integers(2, 60), st.floats(0.01, 1.0), st.integers(0, 2**32), iterations)
def test_trained_steps_are_distinct_stochastic_steps_and_the_stated_share_of_them(
    num_steps: int, fraction: float, seed: int, iteration: int
) -> None:
    window = AllSteps(num_steps=num_steps, trained_fraction=fraction, seed=seed)
    trained = window.trained(iteration)
    assert list(trained) == sorted(set(trained))
    assert set(trained) <= set(window.at(iteration))
    assert len(trained) >= 1
    assert abs(len(trained) - fraction * (num_steps - 1)) <= 1
    assert window.trained(iteration) == trained


def test_dance_grpo_trains_fourteen_of_its_steps_drawn_anew_and_evenly() -> None:
    window = AllSteps(num_steps=25, trained_fraction=0.6, seed=3)
    drawn = [window.trained(iteration) for iteration in range(1200)]
    assert {len(trained) for trained in drawn} == {14}
    assert len(set(drawn)) > 1000
    counts = [sum(step in trained for trained in drawn) for step in range(24)]
    assert all(abs(count - 700) < 85 for count in counts)  # five standard deviations


@pytest.mark.parametrize("num_steps", [2, 9])
def test_a_window_that_does_not_fit_is_refused(num_steps: int) -> None:
    for size in (0, num_steps, num_steps + 1):
        with pytest.raises(ValueError, match="size"):
            SlidingWindow(num_steps=num_steps, size=size)
        with pytest.raises(ValueError, match="size"):
            RandomWindow(num_steps=num_steps, size=size, seed=0)
    with pytest.raises(ValueError, match="start"):
        FrozenWindow(num_steps=num_steps, size=1, start=num_steps - 1)
