import base64
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mixgrpo.report import write_report
from mixgrpo.report.text import TIMES
from report.fake_run import read_rows, write_rows
from report.page import Element, read_page

MakeRun = Callable[..., Path]


def report(run: Path) -> Element:
    return read_page(write_report(run).read_text(encoding="utf-8"))


def cards(page: Element) -> dict[str, str]:
    return {card.all("h3")[0].text: card.text for card in page.all("div", "card")}


def best_row(run: Path) -> dict[str, dict[str, float]]:
    return next(row for row in reversed(read_rows(run, "eval")) if row["best"])


def test_report_is_written_into_the_run_folder_or_where_it_is_asked_for(make_run: MakeRun, tmp_path: Path):
    run = make_run(iterations=2)
    assert write_report(run) == run / "report.html"
    elsewhere = tmp_path / "new" / "page.html"
    assert write_report(run, elsewhere) == elsewhere
    assert elsewhere.read_text(encoding="utf-8") == (run / "report.html").read_text(encoding="utf-8")
    assert not list(elsewhere.parent.glob("*.part"))


def test_headline_shows_the_held_out_figures_of_the_log_with_their_errors(make_run: MakeRun):
    run = make_run()
    first, best = read_rows(run, "eval")[0], best_row(run)
    shown = cards(report(run))
    assert list(shown) == ["ocr", "ocr exact match", "colors", "jpeg"]
    before, after = first["rewards"]["ocr"], best["rewards"]["ocr"]
    error = math.hypot(first["standard_errors"]["ocr"], best["standard_errors"]["ocr"])
    assert f"{before:.3f} → {after:.3f}" in shown["ocr"]
    assert f"+{after - before:.3f} ± {error:.3f}" in shown["ocr"]
    assert "trained, weight 1" in shown["ocr"]
    assert "trained, weight 0.5" in shown["colors"]
    assert "measured, not trained on" in shown["jpeg"]
    before, after = first["details"]["ocr/exact"], best["details"]["ocr/exact"]
    assert f"{before * 100:.1f} % → {after * 100:.1f} %" in shown["ocr exact match"]
    assert f"+{(after - before) * 100:.1f} ± {100 * math.hypot(0.0301, 0.0301):.1f} points" in shown["ocr exact match"]


def test_a_reward_that_scores_held_out_pictures_only_is_shown_as_a_judge(make_run: MakeRun):
    page = report(make_run(judge=0.2))
    shown = cards(page)
    assert list(shown) == ["ocr", "ocr exact match", "colors", "jpeg", "tesseract", "tesseract exact match"]
    assert "independent judge: no training ever saw it" in shown["tesseract"]
    assert "tesseract" not in page.all("p", "lede")[0].text
    assert "training" in page.panel("ocr").text
    for name in ("tesseract", "tesseract/exact"):
        assert page.panel(name)
        assert "training" not in page.panel(name).text
    assert "tesseract" not in page.panel("Spread within groups").text


def test_headline_says_what_was_trained_on_what_and_how_long(make_run: MakeRun):
    run = make_run()
    page = report(run)
    lede, section = page.all("p", "lede")[0].text, page.section("headline").text
    assert lede.startswith(
        "flux-nano post-trained on ocr and colors with MixGRPO: full fine-tuning (5.1 M parameters), a "
    )
    assert "a sliding window of 3 of 10 steps" in lede
    assert f"60 iterations of 10 {TIMES} 12 samples in 5 min" in lede
    assert page.all("h1")[0].text == "flux-nano-mixgrpo"
    assert "256 held-out prompts" in section
    assert "the moving average of the weights" in section
    assert "step-000060" in section


def test_a_best_that_is_not_the_last_is_told_from_it(make_run: MakeRun):
    run = make_run(falling=True)
    best, last = best_row(run), read_rows(run, "eval")[-1]
    page = report(run)
    assert best["iteration"] != last["iteration"]
    assert (
        f"“After” is the best, not the last evaluation, iteration {best['iteration']}" in page.section("headline").text
    )
    assert f"last, iteration 60: {last['rewards']['ocr']:.3f}" in cards(page)["ocr"]


@pytest.mark.parametrize(
    ("reason", "css", "words"),
    [
        ("finished", "good", "Finished 2025-10-09"),
        ("interrupted", "open", "Interrupted after 4 iterations, 2025-10-09"),
        (
            "stopped: reward 'ocr' has collapsed: 0.1",
            "bad",
            "Stopped by itself after 4 iterations, 2025-10-09 08:53 UTC. Reward 'ocr' has collapsed: 0.1.",
        ),
        (None, "open", "No end was recorded: the run is still going, or it was killed. The last row was written 2025"),
    ],
)
def test_status_says_how_the_run_ended(make_run: MakeRun, reason: str | None, css: str, words: str):
    status = report(make_run(iterations=4, reason=reason)).all("p", "status")[0]
    assert css in status.classes
    assert status.text.startswith(words)


def test_only_an_unfinished_run_is_told_how_to_resume(make_run: MakeRun):
    finished, stopped = make_run("a", iterations=2), make_run("b", iterations=2, reason="interrupted")
    assert "--resume" not in report(finished).section("settings").text
    assert f"mixgrpo train --resume {stopped}" in report(stopped).section("settings").text
    assert f"mixgrpo train {finished / 'resolved.json'}" in report(finished).section("settings").text
    assert f'FluxPipeline.from_pretrained("{finished / "export"}")' in report(finished).section("settings").text


def test_page_loads_nothing_from_anywhere(make_run: MakeRun):
    run = make_run()
    page = report(run)
    for element in page.all():
        for name in ("src", "href", "srcset", "poster", "data", "action", "xlink:href"):
            assert re.match(r"data:|#|$", element.attributes.get(name, "")), element
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    policy = next(meta for meta in page.all("meta") if meta.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none';")


def test_text_from_the_run_cannot_become_markup(make_run: MakeRun):
    evil = '<script>alert("a" & \'b\')</script><img src=x onerror="alert(1)">'
    run = make_run(iterations=2, prompts_shown=[evil, "plain"])
    config = json.loads((run / "resolved.json").read_text())
    (run / "resolved.json").write_text(json.dumps({**config, "name": evil, "description": evil, evil: evil}))
    page = report(run)
    assert page.all("figcaption")[0].text == evil
    assert page.all("h1")[0].text == evil
    assert len(page.all("script")) == 1
    assert not [image for image in page.all("img") if "onerror" in image.attributes]


def test_gallery_embeds_every_picture_of_every_evaluation_once(make_run: MakeRun):
    run = make_run(iterations=20)
    index = json.loads((run / "samples" / "index.json").read_text())
    pairs = report(run).all("figure", "pair")
    assert [pair.all("figcaption")[0].text for pair in pairs] == index["prompts"]
    for number, pair in enumerate(pairs):
        embedded = [base64.b64decode(image.attributes["src"].split(",")[1]) for image in pair.all("img")]
        files = [run / "samples" / sheet["files"][number] for sheet in index["sheets"]]
        assert embedded == [file.read_bytes() for file in files]
        assert all("crisp" in image.classes for image in pair.all("img"))


def test_gallery_shows_the_best_evaluation_first_and_all_of_them_on_the_slider(make_run: MakeRun):
    run = make_run(falling=True)
    page, evals, best = report(run), read_rows(run, "eval"), best_row(run)
    place = [row["iteration"] for row in evals].index(best["iteration"])
    for pair in page.all("figure", "pair"):
        shown = [image for image in pair.all("img") if "hidden" not in image.attributes]
        assert [image.attributes.get("data-sheet", "before") for image in shown] == ["before", str(place)]
    labels = [item.text for item in page.all("ol", "labels")[0].all("li")]
    assert len(labels) == len(evals)
    assert labels[0].startswith("before training · ocr 0.5")
    assert labels[place].startswith(
        f"after {best['iteration']} iterations, the best · ocr {best['rewards']['ocr']:.3f}"
    )
    assert page.all("output")[0].text == labels[place]
    slider = next(element for element in page.all("input") if element.attributes["type"] == "range")
    assert (slider.attributes["max"], slider.attributes["value"]) == (str(len(evals) - 1), str(place))


def test_large_pictures_are_scaled_down_and_not_enlarged_crisply(make_run: MakeRun):
    page = report(make_run(iterations=2, picture=(640, 480), prompts_shown=["a", "b"]))
    images = page.section("pictures").all("img")
    assert len(images) == 4
    for image in images:
        with Image.open(io.BytesIO(base64.b64decode(image.attributes["src"].split(",")[1]))) as picture:
            assert picture.size == (448, 336)
        assert "crisp" not in image.classes


def test_many_evaluations_keep_the_first_the_best_and_the_last(make_run: MakeRun):
    run = make_run(iterations=40, eval_every=1)
    page = report(run)
    labels = [item.text for item in page.all("ol", "labels")[0].all("li")]
    assert len(labels) <= 13
    assert labels[0].startswith("before training")
    assert labels[-1].startswith("after 40 iterations")
    assert any("the best" in label for label in labels)
    assert f"shows {len(labels)} of 41 evaluations" in page.section("pictures").text


def hover(panel: Element, clock: str) -> dict[str, list[list[float]]]:
    """Return the series of a chart by name, as the page's script reads them."""
    chart = panel.all("div", clock)[0].all("svg")[0]
    return {series["name"]: series["points"] for series in json.loads(chart.attributes["data-hover"])["series"]}


def test_curves_show_the_numbers_of_the_log_over_iterations_and_over_time(make_run: MakeRun):
    run = make_run()
    page, rows, evals = report(run), read_rows(run, "train"), read_rows(run, "eval")
    start = read_rows(run, "start")[0]["time"]
    points = hover(page.panel("ocr"), "by-iteration")
    assert points["held-out"] == [[row["iteration"], pytest.approx(row["rewards"]["ocr"], rel=1e-5)] for row in evals]
    assert points["each iteration"] == [
        [row["iteration"], pytest.approx(row["rewards"]["ocr"]["mean"], rel=1e-5)] for row in rows
    ]
    timed = hover(page.panel("ocr"), "by-time")["held-out"]
    assert [x for x, _ in timed] == pytest.approx([(row["time"] - start) / 60 for row in evals], rel=1e-4)
    exact = hover(page.panel("ocr/exact"), "by-iteration")["held-out"]
    assert [y for _, y in exact] == pytest.approx([100 * row["details"]["ocr/exact"] for row in evals], rel=1e-5)
    largest = hover(page.panel("Largest ratio"), "by-iteration")["each iteration"]
    assert [y for _, y in largest] == pytest.approx([row["ratio_max"] - 1 for row in rows], abs=1e-7)
    assert [y for _, y in hover(page.panel("Learning rate"), "by-time")["Learning rate"]] == pytest.approx(
        [row["lr"] for row in rows], rel=1e-5
    )


def test_what_never_changes_is_said_and_not_drawn(make_run: MakeRun):
    curves = report(make_run(constant_lr=True)).section("curves")
    titles = [figure.all("h3")[0].text for figure in curves.all("figure", "panel")]
    assert "Learning rate" not in titles
    assert "KL to the starting model" not in titles
    assert f"learning rate 1.5 {TIMES} 10⁻⁴" in curves.text
    assert "failed scores 0" in curves.text


def test_kl_and_failures_get_their_charts(make_run: MakeRun):
    run = make_run(kl=True, failures=True)
    curves = report(run).section("curves")
    assert hover(curves.panel("KL to the starting model"), "by-iteration")
    failed = hover(curves.panel("Samples that ocr could not score"), "by-iteration")
    assert [y for _, y in next(iter(failed.values()))] == [
        row["rewards"]["ocr"]["failed"] for row in read_rows(run, "train")
    ]
    assert hover(curves.panel("Skipped updates"), "by-iteration")


def test_table_of_evaluations_holds_all_figures(make_run: MakeRun):
    run = make_run(iterations=20)
    table = report(run).all("table", "figures")[0]
    rows = [[cell.text for cell in row.all()] for row in table.all("tbody")[0].all("tr")]
    for row, evaluation in zip(rows, read_rows(run, "eval"), strict=True):
        text = " ".join(row)
        assert text.startswith(str(evaluation["iteration"]))
        assert f"{evaluation['rewards']['ocr']:.3f} ± 0.019" in text
        assert f"{evaluation['details']['ocr/exact'] * 100:.1f} % ± 3.0" in text


def test_heat_map_marks_exactly_the_trained_steps(make_run: MakeRun):
    run = make_run(iterations=12, interval=6)
    chart = report(run).panel("Trained steps").all("svg")[0]
    lanes = [float(lane.attributes["y"]) for lane in chart.all("rect", "empty")]
    assert len(lanes) == 10
    left, width = 46.0, (460 - 46 - 12) / 12
    marked = {
        (lanes.index(float(cell.attributes["y"])), iteration)
        for cell in chart.all("rect", "c1")
        for iteration in range(12)
        if float(cell.attributes["x"]) - left < (iteration + 0.5) * width
        and (iteration + 0.5) * width < float(cell.attributes["x"]) - left + float(cell.attributes["width"])
    }
    expected = {
        (step, row["iteration"])
        for row in read_rows(run, "train")
        for step in range(row["window"][0], row["window"][1])
    }
    assert marked == expected


@pytest.mark.parametrize(("kernel", "said"), [("cps", "was stochastic and updated."), ("ode", "none was stochastic.")])
def test_the_heat_map_calls_no_deterministic_step_stochastic(make_run: MakeRun, kernel: str, said: str):
    run = make_run(iterations=2)
    config = json.loads((run / "resolved.json").read_text())
    config["rollout"]["kernel"] = kernel
    (run / "resolved.json").write_text(json.dumps(config))
    assert report(run).panel("Trained steps").all("figcaption")[0].text.endswith(said)


def test_window_section_names_the_steps_that_were_never_trained(make_run: MakeRun):
    text = report(make_run(iterations=12, interval=6)).section("window").text
    assert "3 of 10 denoising steps were trained in every iteration." in text
    assert "Steps 4 to 8 were never trained." in text
    assert "The last step, 9, lands on the picture and is never stochastic." in text


def test_model_calls_are_compared_with_the_unshared_run_and_with_dance_grpo(make_run: MakeRun):
    run = make_run(iterations=21, interval=1, num_steps=25, window=4)
    rows = report(run).all("table", "calls")[0].all("tbody")[0].all("tr")
    table = {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in rows if row.all("th")}
    # algorithm: (l + 1) / 12 + 24 - l calls averaged over l = 0 ... 20, and 1 / 12 + 3
    sampling, update = sum((start + 1) / 12 + 24 - start for start in range(21)) / 21, 1 / 12 + 3
    assert table["this run"][:2] == [f"{sampling:.1f}", f"{update:.2f}"]
    assert table["this run"][3] == f"{(sampling + 3 * update) / (25 + 3 * 14):.2f}"
    assert table["unshared"] == ["25", "4", "37", "0.55"]
    assert table["DanceGRPO, same T"] == ["25", "14", "67", "1.00"]
    assert "DanceGRPO at this run's number of steps: 25 sampled, 14 = " in report(run).section("cost").text


@pytest.mark.parametrize(("head_ratio", "steps"), [(1.0, "18"), (0.4, "12")])
def test_steps_that_dual_compression_leaves_out_are_not_counted(make_run: MakeRun, head_ratio: float, steps: str):
    # The window takes steps 10 to 13 of 25: 10 steps before it, or 4 of them, and 4 of the 11 after it.
    run = make_run(iterations=4, num_steps=25, window=4)
    config = json.loads((run / "resolved.json").read_text())
    config["rollout"] |= {"tail_ratio": 0.4, "tail_order": 2, "head_ratio": head_ratio}
    (run / "resolved.json").write_text(json.dumps(config))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "train":
            row |= {"window": [10, 14], "steps": {str(step): {"ratio_mean": 1.0} for step in range(10, 14)}}
    write_rows(run, rows)
    lines = report(run).all("table", "calls")[0].all("tbody")[0].all("tr")
    table = {line.all("th")[0].text: [cell.text for cell in line.all("td")] for line in lines if line.all("th")}
    assert table["unshared"][:2] == [steps, "4"]


def test_samples_that_are_left_out_of_the_update_are_not_counted_as_shared(make_run: MakeRun):
    # the 2 best and the 2 worst of 12: a third of 3 steps' calls, shared or not
    run = make_run(iterations=2)
    config = json.loads((run / "resolved.json").read_text())
    (run / "resolved.json").write_text(json.dumps(config | {"advantages": {"extremes": 2}}))
    lines = report(run).all("table", "calls")[0].all("tbody")[0].all("tr")
    table = {line.all("th")[0].text: [cell.text for cell in line.all("td")] for line in lines if line.all("th")}
    assert table["unshared"][:2] == ["10", "1"]


def test_cost_tells_where_the_time_of_an_iteration_goes(make_run: MakeRun):
    run = make_run(iterations=20)
    rows = read_rows(run, "train")
    mean = sum(row["seconds"] for row in rows) / len(rows)
    figure = report(run).panel(f"A mean iteration, {mean:.2f} s")
    shares = {row.all("th")[0].text: row.all("td")[1].text for row in figure.all("tr")}
    assert shares["sampling and scoring"] == "56.0 %"
    assert shares["update"] == "43.0 %"
    assert shares["the generator"] == "81.0 %"
    assert shares["waiting for rewards"] == "9.0 %"
    widths = [float(piece.attributes["style"][6:-1]) for piece in figure.all("div", "bar")[1].all("div", "piece")]
    assert sum(widths) == pytest.approx(100, abs=0.1)


def test_the_most_memory_of_any_iteration_is_told_where_it_was_measured(make_run: MakeRun):
    # 1 GiB in the first of 5 iterations, then a sixteenth more each time
    measured = report(make_run(iterations=5, peak_memory=2**30)).section("cost").text
    assert "Most memory in use during an iteration: 1.25 GiB" in measured
    assert "memory" not in report(make_run("older", iterations=5)).section("cost").text


def test_settings_are_all_there_with_the_versions(make_run: MakeRun):
    run = make_run(iterations=2)
    section = report(run).section("settings")
    table = {row.all("th")[0].text: row.all("td")[0].text for row in section.all("table", "settings")[0].all("tr")}
    assert table["rollout.eta"] == "0.7"
    assert table["rewards.1.name"] == "colors"
    assert table["rewards.2.options.quality"] == "90"
    assert table["lora.target_modules"] == "[]"
    assert table["rollout.noise_spread"] == "0.0"
    assert "mixgrpo 0.1.0, torch 2.13.0+cpu, python 3.11.7, machine Linux x86_64, 2 threads" in section.text


def test_report_starts_without_torch_and_numpy():
    code = "import sys, mixgrpo.report; print(sorted({'torch', 'numpy', 'diffusers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_gap_between_samplers_is_told_where_both_were_used(make_run: MakeRun):
    section = report(make_run(iterations=4, eval_every=2, sampler_gap=0.125)).section("curves")
    table = next(t for t in section.all("table", "figures") if "training sampler" in t.text)
    rows = {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in table.all("tbody")[0].all("tr")}
    assert list(rows) == ["ocr"], "only what was measured both ways"
    assert rows["ocr"][2].startswith("+0.125")
    assert "drawn as in training" in section.text
    assert "training sampler" not in report(make_run("plain", iterations=4)).section("curves").text


def test_points_of_different_samplers_are_not_joined(make_run: MakeRun):
    def joined(panel: Element) -> bool:
        chart = panel.all("div", "by-iteration")[0].all("svg")[0]
        assert len([dot for dot in chart.all("circle") if "c4" in dot.classes]) == 3
        return any("c4" in path.classes for path in chart.all("path") if "error" not in path.classes)

    # evaluations after 0, 4 and 8 iterations; the window moves on every two, to start 3 at iteration 7
    moving = report(make_run(iterations=8, eval_every=4, interval=2, sampler_gap=0.1)).section("curves")
    assert not joined(moving.panel("ocr"))
    assert "these points are of different samplers" in moving.panel("ocr").text
    assert "as training draws its samples, with noise in steps 3 to 5, from the same" in moving.text
    still = report(make_run("still", iterations=8, eval_every=4, interval=9, sampler_gap=0.1)).section("curves")
    assert joined(still.panel("ocr"))
    assert "different samplers" not in still.text
