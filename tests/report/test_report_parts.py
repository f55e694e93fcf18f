import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgrpo.report.appendix import flatten
from mixgrpo.report.axes import range_axis, smooth, thin, value_axis
from mixgrpo.report.gallery import MAX_SHEETS, choose_sheets
from mixgrpo.report.read import Sheet
from mixgrpo.report.text import MINUS, NONE, TIMES, change, decimal, duration, listing, value

NUMBERS = st.floats(-1e12, 1e12, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-12)


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_a_value_axis_holds_all_values_and_labels_every_tick_differently(values: list[float]):
    axis = value_axis(values)
    width = axis.high - axis.low
    assert width > 0
    assert all(axis.low - 1e-6 * width <= v <= axis.high + 1e-6 * width for v in values)
    labels = [axis.label(tick) for tick in axis.ticks]
    # Labels are only as exact as six decimals: values that agree further than that share their labels.
    if width > 1e-5 * max(abs(axis.low), abs(axis.high)):
        assert 2 <= len(set(labels)) == len(labels) <= 12


@given(st.floats(0, 1e6), st.floats(0.01, 1e6))
def test_a_range_axis_ends_where_it_is_told(low: float, length: float):
    axis = range_axis(low, low + length)
    assert (axis.low, axis.high) == (low, low + length)
    assert all(low - 1e-6 * length <= tick <= low + length * (1 + 1e-6) for tick in axis.ticks)


def test_axes_have_round_ticks():
    assert [value_axis([0.52, 0.77]).label(tick) for tick in value_axis([0.52, 0.77]).ticks] == [
        "0.50", "0.55", "0.60", "0.65", "0.70", "0.75", "0.80",
    ]  # fmt: skip
    assert value_axis([0.1, 0.9]).low == 0
    tiny = value_axis([0.0, 1.5e-4])
    assert tiny.unit == ", in 10⁻⁴"
    assert tiny.label(tiny.ticks[-1]) == "1.5"
    quarters = value_axis([0.0, 1.2])
    assert [quarters.label(tick) for tick in quarters.ticks][:3] == ["0.00", "0.25", "0.50"]
    assert range_axis(0, 3, whole=True).ticks == (0, 1, 2, 3)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60), st.integers(0, 10).map(lambda n: 2 * n + 1))
def test_smoothing_keeps_the_length_and_stays_within_the_values(values: list[float], width: int):
    means = smooth(values, width)
    assert len(means) == len(values)
    assert min(values) - 1e-9 <= min(means)
    assert max(means) <= max(values) + 1e-9


def test_smoothing_leaves_out_what_was_not_measured():
    assert smooth([1.0, math.nan, 3.0], 3) == [1.0, 2.0, 3.0]
    assert math.isnan(smooth([math.nan], 3)[0])


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=300), st.integers(4, 100))
def test_thinning_keeps_the_highest_and_the_lowest(values: list[float], limit: int):
    points = list(enumerate(values))
    kept = thin([(float(x), y) for x, y in points], limit)
    assert len(kept) <= max(limit, 2)
    assert max(y for _, y in kept) == max(values)
    assert min(y for _, y in kept) == min(values)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


@given(st.integers(1, 60), st.data())
def test_the_chosen_sheets_hold_the_first_the_best_and_the_last(count: int, data: st.DataObject):
    sheets = [Sheet(iteration=5 * number, pictures=()) for number in range(count)]
    best = data.draw(st.sampled_from(sheets)).iteration
    chosen = [sheet.iteration for sheet in choose_sheets(sheets, best)]
    assert len(chosen) <= MAX_SHEETS
    assert {0, best, sheets[-1].iteration} <= set(chosen)
    assert chosen == sorted(set(chosen))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.5734, "0.573"),
        (-2.31, f"{MINUS}2.310"),
        (0.0, "0.000"),
        (0.00042, "0.0004"),
        (0.000042, f"4.2 {TIMES} 10⁻⁵"),
        (1234.5, "1,234"),
        (math.nan, NONE),
    ],
)
def test_scores_are_written_with_the_same_decimals(number: float, text: str):
    assert value(number) == text


def test_numbers_are_written_as_people_write_them():
    assert value(0.27, share=True) == "27.0 %"
    assert change(0.253, share=True) == "+25.3 points"
    assert change(-0.0312) == f"{MINUS}0.031"
    assert decimal(14.916) == "14.9"
    assert decimal(3.0) == "3"
    assert decimal(1e-4) == "10⁻⁴"
    assert decimal(2_500_000) == f"2.5 {TIMES} 10⁶"
    assert [duration(t) for t in (4.21, 42, 312, 11_100, 200_000)] == [
        "4.2 s",
        "42 s",
        "5 min 12 s",
        "3 h 05 min",
        "2 d 7 h",
    ]
    assert duration(59.7) == "60 s"
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"


def test_settings_are_flattened_to_dotted_names():
    config = {"a": 1, "b": {"c": True, "d": {}}, "e": [{"f": "x"}, {"f": None}], "g": [1, 2], "h": []}
    assert dict(flatten(config)) == {
        "a": "1", "b.c": "true", "b.d": "{}", "e.0.f": "x", "e.1.f": "null", "g": "[1, 2]", "h": "[]",
    }  # fmt: skip
