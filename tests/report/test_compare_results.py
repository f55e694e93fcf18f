"""The numbers of a comparison, on folders in which every one of them was chosen."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgrpo.errors import CheckpointError
from mixgrpo.report.alarms import ALIKE
from mixgrpo.report.compare_results import Results, as_json, between, crossing, make_results, spread
from mixgrpo.report.compare_table import gap_table
from mixgrpo.report.compare_words import deceivers, judges, level_with_best, verdicts
from mixgrpo.report.comparison import WEIGHTED_SUM, read_comparison
from mixgrpo.report.samplers import is_one_sampler
from report.fake_comparison import CALLS, SAMPLES, FakeCourse, merged, write_comparison
from report.fake_run import write_rows

OCR = [{"name": "ocr", "weight": 1.0}]
BOTH = [{"name": "ocr", "weight": 1.0}, {"name": "colors", "weight": 0.5}]
JUDGED = [*OCR, {"name": "judge", "weight": 0.0, "evaluation_only": True}]


def ocr(*values: float, every: int = 10, seconds: float = 2.0, **more: object) -> FakeCourse:
    """Return a run of one reward, evaluated every so many iterations."""
    evals = {number * every: {"ocr": value} for number, value in enumerate(values)}
    return FakeCourse(evals=evals, seconds=seconds, rewards=OCR, **more)  # pyright: ignore[reportArgumentType]


def results_of(folder: Path) -> Results:
    return make_results(read_comparison(folder))


def texts(results: Results) -> dict[str, str]:
    return {note.title: note.text for note in verdicts(results)}


@pytest.mark.parametrize(
    ("heights", "target", "position"),
    [
        ([0.1, 0.3], 0.2, 0.5),
        ([0.1, 0.3, 0.7], 0.4, 1.25),
        ([0.1, 0.3], 0.3, 1.0),  # exactly at the target is there
        ([0.5, 0.1], 0.4, 0.0),  # there from the start, and it counts although it is lost again
        ([0.1, 0.5, 0.2, 0.6], 0.4, 0.75),  # the first time counts
        ([0.1, 0.2], 0.3, None),
        ([], 0.3, None),
    ],
)
def test_the_first_crossing_is_found_by_straight_lines(heights: list[float], target: float, position: float | None):
    found = crossing(heights, target)
    assert found == (None if position is None else pytest.approx(position))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.floats(-1, 1))
def test_at_the_crossing_the_curve_is_at_the_target(heights: list[float], target: float):
    position = crossing(heights, target)
    if position is None:
        assert max(heights) < target
    elif position == 0:
        assert heights[0] >= target
    else:
        assert between(heights, position) == pytest.approx(target, abs=1e-9)
        assert all(height < target for height in heights[: math.ceil(position)])


def test_places_are_interpolated_between_evaluations():
    assert [between([0.0, 20.0, 60.0], position) for position in (0, 0.5, 1, 1.25, 2)] == [0, 10, 20, 30, 60]


def test_a_spread_is_the_mean_the_ends_and_the_sample_deviation():
    assert spread([1.0, 2.0, 6.0]) == (3.0, 1.0, 6.0, pytest.approx(math.sqrt(7.0)), 3)
    one = spread([2.0, math.nan])
    assert one[:3] == (2.0, 2.0, 2.0)
    assert math.isnan(one.deviation)
    assert spread([math.nan]).is_empty


def test_evaluations_stand_at_what_the_iterations_before_them_took(tmp_path: Path):
    course = ocr(0.5, 0.6, 0.7, seconds=3.0, calls={"sampling": 5.0, "old": 1.0, "reference": 2.0, "update": 3.0})
    comparison = read_comparison(write_comparison(tmp_path, {"a": [course]}))
    marks = comparison.courses[0].marks
    assert [mark.iterations for mark in marks] == [0, 10, 20]
    # Evaluations take 6 s each in these logs, and none of it counts.
    assert [mark.seconds for mark in marks] == pytest.approx([0, 30, 60])
    passes = (5 + 1 + 2 + 3 * 3) * SAMPLES * 10
    assert [mark.passes for mark in marks] == pytest.approx([0, passes, 2 * passes])


def test_the_decisive_figure_is_the_weighted_sum_of_what_is_trained(tmp_path: Path):
    rewards = [*BOTH, {"name": "judge", "weight": 0.0, "evaluation_only": True}]
    course = FakeCourse(evals={0: {"ocr": 0.5, "colors": 0.8, "judge": 0.3}}, rewards=rewards)
    comparison = read_comparison(write_comparison(tmp_path / "sum", {"a": [course]}))
    assert comparison.decisive == WEIGHTED_SUM
    assert comparison.courses[0].marks[0].figures[WEIGHTED_SUM] == pytest.approx(0.9)
    assert {figure.name: figure.role for figure in comparison.figures} == {
        WEIGHTED_SUM: "decisive", "ocr": "trained", "colors": "trained", "judge": "judge",
    }  # fmt: skip
    single = read_comparison(write_comparison(tmp_path / "one", {"a": [ocr(0.5)]}))
    assert single.decisive == "ocr"
    assert [figure.name for figure in single.figures] == ["ocr"]


def test_the_way_to_the_target_is_measured_seed_by_seed_on_every_axis(tmp_path: Path):
    # The target is the mean of 0.7 and 0.9. `fast` gets there halfway between two evaluations, and three quarters.
    slow = [ocr(0.5, 0.6, 0.7, seconds=4.0), ocr(0.5, 0.7, 0.9, seconds=6.0)]
    cheap = dict(CALLS) | {"sampling": 2.0, "update": 1.0}
    fast = [ocr(0.5, 0.7, 0.9, seconds=1.0, calls=cheap), ocr(0.5, 0.6, 0.6 + 0.8 / 3, seconds=2.0, calls=cheap)]
    results = results_of(write_comparison(tmp_path, {"slow": slow, "fast": fast}))
    assert results.target == pytest.approx(0.8)
    reference, method = results.methods
    first, second = method.reach.seeds
    assert first.place == pytest.approx({"seconds": 15.0, "passes": 15 * 5 * SAMPLES, "iterations": 15.0})
    assert second.place is not None
    assert second.place["iterations"] == pytest.approx(17.5)
    # shares of the whole run of `slow` with the same seed: 80 s and 120 s, 20 iterations of 8 + 3 * 4 passes
    assert first.ratio == pytest.approx({"seconds": 15 / 80, "passes": 15 * 5 / (20 * 20), "iterations": 0.75})
    assert second.ratio == pytest.approx({"seconds": 35 / 120, "passes": 17.5 * 5 / (20 * 20), "iterations": 0.875})
    assert method.reach.ratio("seconds") == pytest.approx((15 / 80 + 35 / 120) / 2)
    assert method.reach.place("seconds") == pytest.approx((15 + 35) / 2)
    assert method.cost is not None
    assert method.cost.seconds_ratio == pytest.approx(1.5 / 5.0)
    # One of the target method's own two seeds never comes to their mean: the median says so.
    assert (reference.reach.reached, math.isinf(reference.reach.ratio("seconds"))) == (1, True)
    assert texts(results)["Time"].startswith("fast reached slow's final reward (0.800) in 0.24 of its training time")


def test_a_seed_that_never_gets_there_counts_as_later_than_all_others(tmp_path: Path):
    target = [ocr(0.5, 0.6), ocr(0.5, 0.6), ocr(0.5, 0.6)]
    most = [ocr(0.5, 0.7), ocr(0.5, 0.5), ocr(0.5, 0.6)]
    few = [ocr(0.5, 0.7), ocr(0.5, 0.5), ocr(0.5, 0.55)]
    results = results_of(write_comparison(tmp_path, {"target": target, "most": most, "few": few}))
    _, most_, few_ = results.methods
    assert (most_.reach.reached, most_.reach.ratio("seconds")) == (2, pytest.approx(1.0))
    assert (few_.reach.reached, few_.reach.ratio("seconds")) == (1, math.inf)
    told = as_json(results)["methods"][2]["reach"]
    assert (told["reached"], told["of"], told["median"]["seconds"]) == (1, 3, None)
    assert told["seeds"][0]["place"]["iterations"] == pytest.approx(5.0)
    assert [seed["place"] for seed in told["seeds"][1:]] == [None, None]
    assert texts(results)["Who got there"] == (
        "target's final reward was reached in some seeds: most (2 of 3) and few (1 of 3)."
    )


def test_runs_under_way_do_not_count_once_a_run_has_ended(tmp_path: Path):
    underway = ocr(0.5, 0.9, iterations=12, reason="interrupted")
    results = results_of(write_comparison(tmp_path, {"a": [ocr(0.5, 0.6, 0.7), None], "b": [underway, None]}))
    a, b = results.methods
    assert (a.finished, a.running, a.provisional) == (1, 0, False)
    assert (b.finished, b.running, b.provisional, b.iterations) == (0, 1, True, (12,))
    assert b.finals["ocr"].mean == 0.9
    assert not b.reach.seeds
    assert not results.is_complete
    assert texts(results)["Not complete"] == (
        "1 of 4 runs have ended. Figures are of the runs that have. Of b none has; what is shown is where the runs "
        "under way are."
    )
    more = results_of(write_comparison(tmp_path / "more", {"a": [ocr(0.5, 0.6, 0.7), underway]}, seeds=3))
    assert more.methods[0].finals["ocr"] == spread([0.7])
    assert more.target == 0.7


def test_without_a_finished_run_of_the_target_method_there_is_no_race(tmp_path: Path):
    results = results_of(write_comparison(tmp_path, {"a": [ocr(0.5, reason=None)], "b": [ocr(0.5, 0.6)]}))
    assert math.isnan(results.target)
    assert as_json(results)["target"] == {"method": "a", "value": None, "is_goal": True}
    assert not results.methods[1].reach.seeds
    assert "No target yet" in texts(results)


def test_what_the_untouched_model_has_already_is_nothing_to_reach(tmp_path: Path):
    results = results_of(write_comparison(tmp_path, {"a": [ocr(0.5, 0.4)], "b": [ocr(0.5, 0.6)]}))
    assert not results.is_goal
    assert not results.methods[1].reach.seeds
    assert texts(results)["No race"].startswith("a ended at 0.400, no higher than the untouched model")


def test_a_method_that_has_not_begun_is_there_without_figures(tmp_path: Path):
    results = results_of(write_comparison(tmp_path, {"a": [ocr(0.5, 0.6)], "b": [None]}))
    b = results.methods[1]
    assert b.cost is None
    assert b.finals["ocr"].is_empty
    assert not b.curve
    assert json.dumps(as_json(results), allow_nan=False)


def test_a_run_that_stopped_by_itself_counts_with_its_last_evaluation_and_is_told(tmp_path: Path):
    collapsed = ocr(0.5, 0.55, iterations=14, reason="stopped: reward 'ocr' has collapsed")
    results = results_of(
        write_comparison(tmp_path, {"a": [ocr(0.5, 0.6, 0.7)] * 2, "b": [ocr(0.5, 0.6, 0.8), collapsed]})
    )
    b = results.methods[1]
    assert (b.finished, b.stopped) == (1, 1)
    assert b.finals["ocr"] == spread([0.8, 0.55])
    assert b.reach.reached == 1
    # Only evaluations that all runs have: a mean must not jump where one run ends.
    assert [point.place["iterations"] for point in b.curve] == [0, 10]
    assert results.is_complete
    assert texts(results)["Take care"] == (
        "b, seed 1: stopped by itself after 14 iterations. Reward 'ocr' has collapsed. Its last evaluation counts as "
        "its final one."
    )


def test_curves_are_means_over_the_seeds_with_the_ends_of_their_band(tmp_path: Path):
    runs = [ocr(0.5, 0.6, seconds=2.0), ocr(0.5, 0.8, seconds=4.0)]
    point = results_of(write_comparison(tmp_path, {"a": runs})).methods[0].curve[1]
    assert point.place["seconds"] == pytest.approx(30.0)
    assert point.figures["ocr"][:3] == (pytest.approx(0.7), 0.6, 0.8)


def test_the_gap_between_samplers_is_told_before_and_after_with_its_error(tmp_path: Path):
    run = FakeCourse(
        evals={0: {"ocr": 0.5}, 10: {"ocr": 0.8}},
        training={0: {"ocr": 0.2}, 10: {"ocr": 0.7}},
        errors={"ocr": 0.03},
        rewards=OCR,
    )
    method = results_of(write_comparison(tmp_path, {"a": [run]})).methods[0]
    assert method.gap_before["ocr"].gap.mean == pytest.approx(0.3)
    assert method.gap_after["ocr"].gap.mean == pytest.approx(0.1)
    assert method.gap_after["ocr"].error == pytest.approx(0.03 * math.sqrt(2))


def gapped(windows: Mapping[int, tuple[int, int]], **settings: Any) -> FakeCourse:
    return FakeCourse(
        evals={0: {"ocr": 0.5}, 10: {"ocr": 0.7}, 20: {"ocr": 0.8}},
        training={0: {"ocr": 0.2}, 10: {"ocr": 0.4}, 20: {"ocr": 0.7}},
        rewards=OCR,
        windows=windows,
        **settings,
    )


MOVING = {0: (0, 2), 10: (1, 3), 19: (2, 4)}
"""After 20 iterations the sampler is that of iteration 19."""


def test_where_the_window_moves_only_the_gap_after_training_is_told(tmp_path: Path):
    runs = {
        "moves": [gapped(MOVING), gapped(MOVING)],
        "stays": [gapped({0: (3, 5)})] * 2,
        # a random window may end where it began, in one seed
        "random": [gapped({0: (1, 2), 5: (3, 4), 19: (1, 2)}), gapped({0: (1, 2), 19: (4, 5)})],
        "everywhere": [gapped({0: (0, 9)})] * 2,
        # without noise there is no window to move
        "ode": [gapped(MOVING, config=merged({"rollout": {"kernel": "ode"}}))] * 2,
        "returns": [gapped({0: (0, 2), 5: (1, 3), 19: (0, 2)})] * 2,
    }
    results = results_of(write_comparison(tmp_path, runs))
    methods = {method.name: method for method in results.methods}
    for name, told in {"moves": 1, "stays": 2, "random": 1, "everywhere": 2, "ode": 2, "returns": 2}.items():
        assert methods[name].gap_after["ocr"].gap.mean == pytest.approx(0.1), name
        assert ("ocr" in methods[name].gap_before) is (told == 2), name
    cells = {method: [cell.text for cell in row] for method, row in gap_table(results).rows}
    assert cells == {
        "moves": ["moves", "2 to 3", "+0.100"],
        "stays": ["stays", "3 to 4", "+0.300 → +0.100"],
        "random": ["random", "1 or 4", "+0.100"],
        "everywhere": ["everywhere", "0 to 8", "+0.300 → +0.100"],
        "ode": ["ode", "none", "+0.300 → +0.100"],
        "returns": ["returns", "0 to 1", "+0.300 → +0.100"],
    }
    assert "Where the window moves" in " ".join(gap_table(results).notes)
    assert json.dumps(as_json(results), allow_nan=False)


def test_samplers_are_one_only_if_their_steps_are_known():
    assert is_one_sampler([range(1, 3), range(1, 3)])
    assert not is_one_sampler([range(1, 3), range(2, 4)])
    assert not is_one_sampler([range(1, 3), None])
    assert not is_one_sampler([None, None])


def test_at_an_evaluation_under_way_the_window_of_the_next_iteration_counts(tmp_path: Path):
    # Stopped right after an evaluation: no row tells the window that it was drawn with.
    underway = gapped(MOVING, planned=40, reason="interrupted")
    further = gapped(MOVING, planned=40, reason="interrupted", iterations=21)
    methods = results_of(write_comparison(tmp_path, {"underway": [underway], "further": [further]})).methods
    assert [method.sampler_windows for method in methods] == [(), ((2, 4),)]
    assert [bool(method.gap_before) for method in methods] == [False, False]


def test_without_the_training_sampler_there_is_no_gap(tmp_path: Path):
    results = results_of(write_comparison(tmp_path, {"a": [ocr(0.5, 0.6)]}))
    assert not results.methods[0].gap_after
    assert "Samplers" not in texts(results)


def judged(final: float, judge: float) -> FakeCourse:
    evals = {0: {"ocr": 0.5, "judge": 0.4}, 10: {"ocr": final, "judge": judge}}
    return FakeCourse(evals=evals, rewards=JUDGED, errors={"ocr": 0.02, "judge": 0.02})


def test_a_judge_that_falls_while_the_rewards_rise_is_an_alarm(tmp_path: Path):
    runs = {
        "honest": [judged(0.7, 0.6), judged(0.7, 0.5)],
        "deceiver": [judged(0.9, 0.3), judged(0.8, 0.35)],
        "within the error": [judged(0.9, 0.39), judged(0.8, 0.39)],
        "in one seed": [judged(0.9, 0.3), judged(0.8, 0.41)],
    }
    results = results_of(write_comparison(tmp_path, {name.replace(" ", "-"): run for name, run in runs.items()}))
    assert [figure.name for figure in judges(results)] == ["judge"]
    assert [method.name for method in deceivers(results, "judge")] == ["deceiver"]
    told = texts(results)
    assert (
        "scores deceiver (\N{MINUS SIGN}0.075) below the untouched model (0.400)"
        in told["The independent judge disagrees"]
    )
    assert "deceiver reached honest's final reward" in told["Fastest"]
    assert "But the independent judge scores it below the untouched model. The fastest of the others" in told["Fastest"]


def test_a_judge_that_rises_with_every_method_agrees(tmp_path: Path):
    results = results_of(write_comparison(tmp_path, {"a": [judged(0.7, 0.5)], "b": [judged(0.8, 0.6)]}))
    assert texts(results)["The independent judge agrees"] == (
        "judge, which no training ever saw, rose from 0.400 to between 0.500 and 0.600 with every method."
    )


def test_methods_are_level_when_their_ranges_over_the_seeds_overlap():
    spreads = {"best": spread([0.7, 0.9]), "level": spread([0.5, 0.7]), "below": spread([0.5, 0.69])}
    assert level_with_best(spreads) == {"best", "level"}
    # With one seed of any of them chance cannot be told from merit.
    assert level_with_best(spreads | {"single": spread([0.1])}) == set()


def test_runs_that_were_evaluated_on_something_else_are_told(tmp_path: Path):
    other = FakeCourse(evals={0: {"ocr": 0.53}, 10: {"ocr": 0.7}}, rewards=OCR, errors={"ocr": 0.02})
    same = FakeCourse(evals={0: {"ocr": 0.5}, 10: {"ocr": 0.7}}, rewards=OCR, errors={"ocr": 0.02})
    remarks = read_comparison(write_comparison(tmp_path, {"a": [same], "b": [other]})).remarks
    assert remarks == (
        "The untouched model scores 0.5000 to 0.5300 in ocr, depending on the run: the runs were not evaluated on the "
        "same prompts and noise.",
    )


def test_a_log_with_missing_iterations_is_told(tmp_path: Path):
    folder = write_comparison(tmp_path, {"a": [ocr(0.5, 0.6)]})
    log = folder / "a" / "seed-0" / "metrics.jsonl"
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines() if '"iteration": 4,' not in line))
    assert read_comparison(folder).remarks == (
        "a, seed 0: iterations are missing from its log, so its time and its calls are too small.",
    )


def test_a_comparison_of_nothing_yet_can_be_read(tmp_path: Path):
    results = results_of(write_comparison(tmp_path, {"a": [None], "b": [None]}))
    assert [method.iterations for method in results.methods] == [(), ()]
    assert json.dumps(as_json(results), allow_nan=False)


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"holds no comparison: it has no compare\.json"):
        read_comparison(tmp_path)


def test_images_that_could_not_be_scored_are_told(tmp_path: Path):
    folder = write_comparison(tmp_path, {"a": [ocr(0.5, 0.6)]})
    log = folder / "a" / "seed-0" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"failed": {}', '"failed": {"ocr": 3}', 1))
    assert read_comparison(folder).remarks == (
        "a, seed 0: in an evaluation ocr could not score 3 images; its mean leaves them out.",
    )


def test_images_that_became_alike_in_every_seed_are_an_alarm(tmp_path: Path):
    write_comparison(tmp_path, {name: [judged(0.7, 0.6), judged(0.7, 0.6)] for name in ("alike", "varied", "once")})
    last = {"alike": (0.05, 0.09), "varied": (0.2, 0.11), "once": (0.05, 0.2)}
    for method, seeds in last.items():
        for seed, diversity in enumerate(seeds):
            run = tmp_path / method / f"seed-{seed}"
            settings = json.loads((run / "resolved.json").read_text())
            (run / "resolved.json").write_text(json.dumps(settings | {"guard": {"min_diversity": 0.5}}))
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            for row in rows:
                if row["kind"] == "eval":
                    row["diversity"] = diversity if row["iteration"] else 0.2
            write_rows(run, rows)
    told = texts(results_of(tmp_path))[ALIKE]
    assert told.startswith("alike ended in every seed with images of a prompt that differ far less")
