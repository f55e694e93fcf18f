import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixgrpo.report.health import Level, Note, health_notes
from mixgrpo.report.html import render
from mixgrpo.report.read import read_run
from mixgrpo.report.summary import summarise
from mixgrpo.report.text import MINUS
from report.fake_run import write_rows

MakeRun = Callable[..., Path]


def notes(run: Path) -> dict[str, Note]:
    read = read_run(run)
    return {note.title: note for note in health_notes(read, summarise(read))}


def change_rows(run: Path, kind: str, change: Callable[[dict[str, Any]], None]) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == kind:
            change(row)
    write_rows(run, rows)


def test_a_healthy_run_raises_no_alarm(make_run: MakeRun):
    found = notes(make_run())
    assert not [note for note in found.values() if note.level is Level.ALARM]
    assert "ocr (0.5" in found["No sign of reward hacking"].text
    assert "Nothing failed" in found


def test_a_training_reward_that_rises_while_a_held_out_one_falls_is_an_alarm(make_run: MakeRun):
    run = make_run()

    def lose_colors(row: dict[str, Any]) -> None:
        row["rewards"]["colors"] = 0.96 - 0.002 * row["iteration"]

    change_rows(run, "eval", lose_colors)
    note = notes(run)["Possible reward hacking"]
    assert note.level is Level.ALARM
    assert note.text.startswith("While ocr (0.5")
    assert "colors (0.960 → 0.840) fell on the held-out prompts" in note.text
    assert "jpeg" not in note.text


@pytest.mark.parametrize(
    ("gain", "title", "level", "part"),
    [
        (0.2, "The independent judge agrees", Level.GOOD, ", and so did tesseract (0.600 → 0.800), which no training"),
        (
            0.01,
            "The independent judge sees no clear gain",
            Level.NOTE,
            "; tesseract (0.600 → 0.610), which no training",
        ),
        (-0.2, "The independent judge disagrees", Level.ALARM, ", but tesseract (0.600 → 0.400), which no training"),
    ],
)
def test_what_an_independent_judge_says_of_the_gain_is_told(
    make_run: MakeRun, gain: float, title: str, level: Level, part: str
):
    def make_last_the_best(row: dict[str, Any]) -> None:
        row["rewards"]["ocr"] = 0.573 + 0.002 * row["iteration"]
        row["best"] = True

    run = make_run(judge=gain)
    change_rows(run, "eval", make_last_the_best)
    found = notes(run)
    assert found[title].level is level
    assert found[title].text.startswith("ocr (0.573 → 0.693) rose on the held-out prompts")
    assert part in found[title].text
    assert len([name for name in found if "independent judge" in name]) == 1
    assert not [name for name in notes(make_run("without")) if "independent judge" in name]


def test_held_out_and_training_that_part_after_the_best_are_an_alarm(make_run: MakeRun):
    found = notes(make_run(falling=True))
    assert found["Possible reward hacking"].text.startswith("From iteration 40 on, ocr (0.7")
    worse = found["Worse after the best"]
    assert worse.level is Level.ALARM
    assert "From its best at iteration 40 to iteration 60, ocr (0.7" in worse.text
    assert "No sign of reward hacking" not in found


def test_a_fall_within_the_sampling_error_is_no_alarm(make_run: MakeRun):
    run = make_run()

    def noise(row: dict[str, Any]) -> None:
        row["rewards"]["colors"] = 0.96 - 0.0001 * row["iteration"]

    change_rows(run, "eval", noise)
    found = notes(run)
    assert "Possible reward hacking" not in found
    assert f"colors ({MINUS}0.006 ± 0.011) is less than 2 standard errors" in found["May be chance"].text


def test_a_run_that_never_beats_its_start_is_an_alarm(make_run: MakeRun):
    run = make_run()

    def never(row: dict[str, Any]) -> None:
        row["rewards"]["ocr"] = 0.57 - 0.001 * row["iteration"]
        row["best"] = row["iteration"] == 0

    change_rows(run, "eval", never)
    assert notes(run)["No evaluation beat the untouched model"].level is Level.ALARM


def test_samples_that_become_alike_without_a_better_reward_are_an_alarm(make_run: MakeRun):
    run = make_run(collapse=True)

    def flatten(row):
        row["rewards"]["ocr"]["mean"] = 0.5

    change_rows(run, "train", flatten)
    note = notes(run)["Samples of a prompt have become alike in ocr"]
    assert note.level is Level.ALARM
    assert "fell from 0.1" in note.text


def test_samples_that_become_alike_because_they_are_right_are_only_noted(make_run: MakeRun):
    note = notes(make_run(collapse=True))["Samples of a prompt have become alike in ocr"]
    assert note.level is Level.NOTE
    assert "nearly solved" in note.text


def test_failures_are_counted(make_run: MakeRun):
    run = make_run(failures=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    failed = sum(row["rewards"]["ocr"]["failed"] for row in rows if row["kind"] == "train")
    evals = sum(row["failed"]["ocr"] for row in rows if row["kind"] == "eval")
    found = notes(run)
    assert (
        f"ocr could not score {failed} training samples ({failed / 7200:.1%}".rstrip("%")
        in found["Failed rewards"].text
    )
    assert f"ocr could not score {evals} pictures of the evaluations" in found["Failed rewards"].text
    assert found["Skipped updates"].text.startswith("1 update had")
    assert "Nothing failed" not in found


def test_a_run_that_stopped_by_itself_is_an_alarm(make_run: MakeRun):
    found = notes(make_run(iterations=4, reason="stopped: reward 'ocr' failed on 8 of 8 samples"))
    assert found["The run stopped by itself"] == (
        Level.ALARM,
        "The run stopped by itself",
        "Reward 'ocr' failed on 8 of 8 samples.",
    )
    assert "Nothing failed" not in found


def test_groups_without_a_signal_are_an_alarm_when_they_are_most(make_run: MakeRun):
    run = make_run()
    assert notes(run)["Groups without a signal"].level is Level.NOTE
    change_rows(run, "train", lambda row: row.update(skipped_groups=8))
    note = notes(run)["Groups without a signal"]
    assert note.level is Level.ALARM
    assert note.text.startswith("80.0 % of the groups (480)")


def test_mostly_clipped_ratios_are_an_alarm(make_run: MakeRun):
    run = make_run()
    change_rows(run, "train", lambda row: row.update(clip_fraction=0.9))
    assert "Over the last 10 iterations, 90 % of the ratios" in notes(run)["Most ratios are clipped"].text


def test_what_each_of_several_rewards_does_in_training_is_shown(make_run: MakeRun):
    run = make_run()
    assert "Share of the advantages" not in render(read_run(run)), "a run from before it was measured"

    def split(row: dict[str, Any]) -> None:
        share = 0.6 if row["iteration"] < 50 else 0.8
        for name, part in (("ocr", share), ("colors", 1 - share), ("jpeg", 0.0)):
            row["rewards"][name]["advantage_share"] = part if row["iteration"] != 55 else None
        row["rewards"]["ocr"]["failed"] = 12

    change_rows(run, "train", split)
    page = render(read_run(run))
    assert "<h3>Share of the advantages</h3>" in page
    panel = page[page.index("<h3>Share of the advantages</h3>") :].split("</figure>")[0]
    assert "colors" in panel
    assert "jpeg" not in panel
    table = page[page.index("Rewards in training") :].split("</table>")[0]
    assert "Means over the last 10 iterations" in table
    rows = [re.findall(r"<t[hd]>([^<]*)</t[hd]>", row) for row in table.split("<tr>")[2:]]
    # 12 of 10 x 12 samples failed
    assert [(row[0], row[1], row[-2], row[-1]) for row in rows] == [
        ("ocr", "1", "80.0 %", "10.0 %"),
        ("colors", "0.5", "20.0 %", "0.0 %"),
        ("jpeg", "0", "0.0 %", "0.0 %"),
    ]
