import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixgrpo.errors import CheckpointError, ConfigError
from mixgrpo.report import write_report
from mixgrpo.report.read import read_run
from mixgrpo.report.text import NONE, TIMES
from report.fake_run import START, FakeRun, write_rows
from report.page import Element, read_page

MakeRun = Callable[..., Path]


def report(run: Path) -> Element:
    return read_page(write_report(run).read_text(encoding="utf-8"))


def lines(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)


def test_a_run_without_evaluations_says_so(make_run: MakeRun):
    page = report(make_run(iterations=3, evaluated=False))
    assert "No evaluation on held-out prompts yet." in page.section("headline").text
    assert "No pictures were kept." in page.section("pictures").text
    assert page.panel("ocr")


def test_a_run_of_one_iteration_can_be_reported(make_run: MakeRun):
    page = report(make_run(iterations=1))
    assert f"1 iteration of 10 {TIMES} 12 samples" in page.all("p", "lede")[0].text
    assert page.panel("Trained steps")


def test_a_run_that_only_evaluated_shows_the_untouched_model(make_run: MakeRun):
    run = make_run(iterations=5)
    (run / "metrics.jsonl").write_text("".join(lines(run)[:2]))
    page = report(run)
    assert "before training, nothing after it yet" in page.section("headline").text
    assert "0 of 5 iterations" in page.all("p", "lede")[0].text
    assert "No iteration yet." in page.section("cost").text


@pytest.mark.parametrize("kept", [0, 1])
def test_a_run_that_died_at_once_can_be_reported(make_run: MakeRun, kept: int):
    run = make_run(iterations=2, evaluated=False)
    (run / "metrics.jsonl").write_text("".join(lines(run)[:kept]))
    page = report(run)
    assert "Nothing has been measured yet." in page.section("curves").text
    assert "No end was recorded" in page.all("p", "status")[0].text


def test_a_log_of_every_length_can_be_reported(make_run: MakeRun, tmp_path: Path):
    rows = lines(make_run(iterations=6, eval_every=2))
    for length in range(len(rows)):
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(rows[:length]))
        report(tmp_path / "run")


def test_a_cut_off_last_line_is_left_out_and_reported(make_run: MakeRun):
    run = make_run(iterations=5, reason=None)
    rows = lines(run)
    (run / "metrics.jsonl").write_text("".join(rows)[:-40])
    page = report(run)
    assert f"The last line of metrics.jsonl (line {len(rows)}) is cut off" in page.section("health").text


def test_a_last_line_cut_within_a_letter_is_left_out(make_run: MakeRun):
    run = make_run(iterations=2)
    (run / "metrics.jsonl").write_bytes("".join(lines(run)).encode() + '{"kind": "end", "reason": "é'.encode()[:-1])
    assert "is cut off" in report(run).section("health").text


@pytest.mark.parametrize("broken", [b'{"kind": "train", "iter\n', b"\xff\xfe\n", b"nonsense\n"])
def test_a_broken_line_in_the_middle_is_named(make_run: MakeRun, broken: bytes):
    run = make_run(iterations=5)
    rows = [line.encode() for line in lines(run)]
    rows[3] = broken
    (run / "metrics.jsonl").write_bytes(b"".join(rows))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 4: not a JSON object"):
        write_report(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iteration": "three"}, "\"iteration\" is 'three', but must be a whole number"),
        ({"window": [3, 1]}, r'"window" is \[3, 1\], but must be \[start, stop\]'),
        ({"rewards": [1]}, '"rewards" is .*, but must be an object'),
        ({"rewards": {"ocr": {}}}, '"rewards", "ocr": "mean" is missing, but must be a number'),
        ({"steps": {"x": {}}}, "'x' is not the number of a step"),
        ({"kind": None}, '"kind" is None, but must be a string'),
        ({"time": True}, '"time" is True, but must be a number'),
    ],
)
def test_a_wrong_value_is_named_with_file_and_line(make_run: MakeRun, change: dict[str, Any], message: str):
    run = make_run(iterations=3)
    rows = [json.loads(line) for line in lines(run)]
    assert rows[2]["kind"] == "train"
    rows[2] |= change
    write_rows(run, rows)
    with pytest.raises(CheckpointError, match=rf"metrics\.jsonl, line 3.*{message}"):
        write_report(run)


def test_a_line_that_is_no_object_is_named(make_run: MakeRun):
    run = make_run(iterations=2)
    (run / "metrics.jsonl").write_text("[1, 2]\n" + "".join(lines(run)))
    with pytest.raises(CheckpointError, match=r"line 1: must hold a JSON object, found list"):
        write_report(run)


def test_rows_of_an_unknown_kind_are_left_out_and_reported(make_run: MakeRun):
    run = make_run(iterations=2)
    (run / "metrics.jsonl").write_text("".join(lines(run)) + '{"kind": "profile", "time": 1}\n')
    assert "rows of kind 'profile' are not known" in report(run).section("health").text


def test_a_missing_folder_and_a_folder_that_is_no_run_are_errors(make_run: MakeRun, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no run folder .*nowhere"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty has no resolved\.json"):
        write_report(tmp_path / "empty")
    run = make_run(iterations=1)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"run has no metrics\.jsonl"):
        write_report(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n\n"b": }', r"resolved\.json, line 3: not JSON"),
        (b"\xff", r"resolved\.json: not UTF-8"),
        (b"[]", r"resolved\.json: must hold one JSON object"),
    ],
)
def test_a_broken_config_is_named(make_run: MakeRun, content: bytes, message: str):
    run = make_run(iterations=1)
    (run / "resolved.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        write_report(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\n]", r"index\.json, line 2: not JSON"),
        ("[]", r'index\.json: must hold "prompts"'),
        ('{"prompts": ["a"], "sheets": [{"files": ["a.png"]}]}', r'index\.json, sheet 0: must hold "iteration"'),
    ],
)
def test_a_broken_list_of_pictures_is_named(make_run: MakeRun, content: str, message: str):
    run = make_run(iterations=1)
    (run / "samples" / "index.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        write_report(run)


def test_a_config_that_knows_none_of_our_settings_does_not_stop_the_report(make_run: MakeRun):
    run = make_run(iterations=4)
    (run / "resolved.json").write_text('{"rewards": "many", "rollout": 3, "window": null}')
    page = report(run)
    assert page.all("h1")[0].text == "run"
    assert "DanceGRPO" in page.section("cost").text


def test_missing_pictures_leave_a_gap_and_are_counted(make_run: MakeRun):
    run = make_run(iterations=2)
    (run / "samples" / "000000" / "001.png").unlink()
    (run / "samples" / "000002" / "002.png").write_bytes(b"no picture")
    page = report(run)
    gaps = [len(pair.all("div", "gone")) for pair in page.all("figure", "pair")]
    assert gaps == [0, 1, 1, 0, 0, 0, 0, 0]
    assert "1 of the pictures that samples/index.json names is missing." in page.section("health").text


def test_no_file_from_outside_the_run_gets_into_the_report(make_run: MakeRun, tmp_path: Path):
    run = make_run(iterations=1, prompts_shown=["a"])
    secret = tmp_path / "secret.png"
    secret.write_bytes((run / "samples" / "000000" / "000.png").read_bytes())
    index = {"prompts": ["a", "b"], "sheets": [{"iteration": 0, "files": ["../../secret.png", str(secret)]}]}
    (run / "samples" / "index.json").write_text(json.dumps(index))
    assert not report(run).section("pictures").all("img")


def test_what_could_not_be_measured_is_a_dash_and_no_number(make_run: MakeRun):
    run = make_run(iterations=20)
    rows = [json.loads(line) for line in lines(run)]
    for row in rows:
        if row["kind"] == "eval":
            row["rewards"]["jpeg"] = None
            del row["standard_errors"], row["num_prompts"]
        if row["kind"] == "train":
            row["rewards"]["jpeg"] = {"mean": None, "std": None, "group_std": None, "failed": 120}
            row["grad_norm"] = None
    write_rows(run, rows)
    page = report(run)
    card = next(card.text for card in page.all("div", "card") if card.text.startswith("jpeg"))
    assert f"{NONE} → {NONE}" in card
    assert "nan" not in card
    assert "nan" not in " ".join(svg.text for svg in page.all("svg"))
    assert not [path for path in page.all("path") if "nan" in path.attributes["d"]]
    assert "How many prompts there were is not recorded" in page.section("headline").text


def resumed(folder: Path, *, cut: bool) -> Path:
    """Write a run that was interrupted at iteration 7, saved at 5, and resumed an hour later."""
    fake = FakeRun(iterations=10, eval_every=5)
    fake.write(folder)
    first = [row for row in fake.rows if row["kind"] == "start" or (row["kind"] != "end" and row["iteration"] < 7)]
    again = [row for row in fake.rows if row["kind"] == "end" or row.get("iteration", 0) >= (7 if cut else 5)]
    start = {**fake.rows[0], "time": first[-1]["time"] + 3600.0, "resumed_from": 7 if cut else 5}
    moved = [{**row, "time": start["time"] + 2.0 + row["time"] - first[-1]["time"]} for row in again]
    write_rows(folder, [*first, start, *moved])
    return folder


@pytest.mark.parametrize("cut", [True, False])
def test_pauses_between_sessions_are_left_out_of_the_running_time(tmp_path: Path, cut: bool):
    run = read_run(resumed(tmp_path / "run", cut=cut))
    assert [row.iteration for row in run.train] == list(range(10))
    assert [row.iteration for row in run.evals] == [0, 5, 10]
    assert [session.resumed_from for session in run.sessions] == [None, 7 if cut else 5]
    assert run.seconds < 120
    elapsed = [row.elapsed for row in run.train]
    assert elapsed == sorted(elapsed)
    assert run.sessions[0].start == START
    page = report(run.path)
    assert "over 2 sessions" in page.all("p", "lede")[0].text
    assert f"resumed at iteration {7 if cut else 5}" in page.section("settings").text


def test_work_that_was_lost_and_done_again_is_mentioned(tmp_path: Path):
    run = read_run(resumed(tmp_path / "run", cut=False))
    assert any(remark.startswith("Iterations 5 to 6 had been run but not saved") for remark in run.remarks)


def test_an_ending_before_a_resume_is_not_the_ending(tmp_path: Path):
    folder = FakeRun(iterations=4, reason="interrupted").write(tmp_path / "run")
    rows = [json.loads(line) for line in lines(folder)]
    write_rows(folder, [*rows, {"kind": "start", "time": START + 9000, "version": "0.1.0", "resumed_from": 4}])
    assert read_run(folder).ending is None


def test_an_output_that_cannot_be_written_is_an_error(make_run: MakeRun, tmp_path: Path):
    run = make_run(iterations=1)
    with pytest.raises(ConfigError, match="is a folder; give the name of the file"):
        write_report(run, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(run, tmp_path / "file" / "report.html")
