"""The page and the tables of a comparison: the same numbers everywhere, and nothing from elsewhere."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mixgrpo.errors import ConfigError
from mixgrpo.report import write_comparison
from report import fake_comparison as fake
from report.fake_comparison import FakeCourse, write_large
from report.page import Element, read_page

METHODS = ["dancegrpo", "mixgrpo", "awm", "diffusion-nft"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_large(tmp_path_factory.mktemp("comparisons") / "large", methods=METHODS)
    write_comparison(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Element:
    return read_page((folder / "index.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def write(folder: Path, courses: dict[str, list[FakeCourse | None]], **terms: Any) -> Element:
    path = write_comparison(fake.write_comparison(folder, courses, **terms))
    return read_page(path.read_text(encoding="utf-8"))


def rows(table: Element) -> dict[str, list[str]]:
    body = table.all("tbody")[0].all("tr")
    return {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in body}


def curves(panel: Element, css: str) -> dict[str, list[list[float]]]:
    chart = panel.all("div", css)[0].all("svg")[0]
    return {one["key"]: one["points"] for one in json.loads(chart.attributes["data-curves"])["series"]}


def test_page_loads_nothing_from_anywhere_and_links_only_to_the_runs_beside_it(folder: Path, page: Element):
    for element in page.all():
        for name in ("src", "href", "srcset", "poster", "data", "action", "xlink:href"):
            link = element.attributes.get(name, "")
            assert re.fullmatch(r"data:.*|#[a-z]+|[a-z-]+/seed-\d/report\.html|", link), element
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert not [word for word in ("http:", "https:", "url(", "@import") if word in text]
    assert not list(folder.glob("*.part"))


def test_sections_are_what_the_links_at_the_top_say(page: Element):
    links = [link.attributes["href"] for link in page.all("nav")[0].all("a")]
    assert links == ["#" + section.attributes["id"] for section in page.all("section")]


def test_tables_show_the_numbers_of_results_json(page: Element, results: dict[str, Any]):
    costs = rows(page.all("table", "cost")[0])
    rewards = rows(page.all("table", "rewards")[0])
    assert list(costs) == [method["title"] for method in results["methods"]]
    for method in results["methods"]:
        cost, cells = method["cost"], costs[method["title"]]
        assert cells[:2] == [f"{cost['calls']['sampling']:g}", f"{cost['calls']['update']:g}"]
        assert f"{cost['seconds']:.2f} s" in cells[2]
        if method["name"] != "dancegrpo":
            assert f"{cost['seconds_ratio']:.2f} of DanceGRPO's" in cells[2]
        assert cells[3] == f"{cost['peak_memory'] / 2**30:.2f} GiB"
        reach = method["reach"]
        if reach["median"]["seconds"] is None:
            assert cells[4] == f"not reached {reach['reached']} of 3 seeds"
        else:
            assert f"{reach['median_ratio']['seconds']:.2f} of DanceGRPO's, {reach['reached']} of 3" in cells[4]
            assert f"{reach['median_ratio']['passes']:.2f} of DanceGRPO's" in cells[5]
        for name, text in zip(results["figures"], rewards[method["title"]], strict=True):
            final, scale = method["finals"][name], 100 if name.endswith("/exact") else 1
            digits = 1 if scale == 100 else 3
            for key in ("mean", "low", "high"):
                assert f"{final[key] * scale:.{digits}f}" in text
    before = rewards["before training"]
    assert before[results_index(results, "ocr/exact")] == "45.3 %"


def results_index(results: dict[str, Any], name: str) -> int:
    return list(results["figures"]).index(name)


def test_markdown_has_the_same_tables(folder: Path, page: Element):
    text = (folder / "table.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    for name in ("cost", "rewards", "gap"):
        for title, cells in rows(page.all("table", name)[0]).items():
            line = next(line for line in lines if line.startswith(f"| {title} |") and _same(line, cells))
            assert line.count(" | ") == len(cells)
    # every table has its rule, as wide as its head
    head = next(i for i, line in enumerate(text.splitlines()) if line.startswith("| method"))
    assert text.splitlines()[head + 1].count("---") == text.splitlines()[head].count(" | ") + 1


def _same(line: str, cells: list[str]) -> bool:
    plain = re.sub(r"<br><sub>", " ", re.sub(r"</sub>|\*\*", "", line))
    return [part.strip() for part in plain.strip("| ").split(" | ")][1:] == cells


def test_bold_marks_the_best_and_what_is_level_with_it(tmp_path: Path):
    def run(final: float) -> FakeCourse:
        return FakeCourse(evals={0: {"ocr": 0.5}, 10: {"ocr": final}}, rewards=[{"name": "ocr", "weight": 1.0}])

    runs: dict[str, list[FakeCourse | None]] = {
        "best": [run(0.7), run(0.9)], "level": [run(0.5), run(0.7)], "below": [run(0.5), run(0.6)],
    }  # fmt: skip
    table = write(tmp_path, runs).all("table", "rewards")[0]
    bold = {row.all("th")[0].text for row in table.all("tbody")[0].all("tr") if row.all("b")}
    assert bold == {"best", "level"}
    assert "| best | **0.800**<br><sub>0.700 to 0.900</sub> |" in (tmp_path / "table.md").read_text()


def test_curves_are_drawn_against_all_three_axes_with_their_bands(page: Element, results: dict[str, Any]):
    panel = page.panel("held-out weighted sum")
    for css, axis, unit in (
        ("by-time", "seconds", 60),
        ("by-passes", "passes", 1000),
        ("by-iteration", "iterations", 1),
    ):
        drawn = curves(panel, css)
        assert set(drawn) == set(METHODS)
        for method in results["methods"]:
            points = [
                [
                    point["place"][axis] / unit,
                    *(point["figures"]["weighted sum"][key] for key in ("mean", "low", "high")),
                ]
                for point in method["curve"]
            ]
            for found, expected in zip(drawn[method["name"]], points, strict=True):
                assert found == pytest.approx(expected, rel=1e-4)
        svg = panel.all("div", css)[0].all("svg")[0]
        groups = {group.attributes["data-key"]: group for group in svg.all("g", "series") if group.all("circle")}
        assert set(groups) == set(METHODS)
        assert all(group.all("path", "band") for group in groups.values())


def test_every_method_is_told_by_colour_and_name(page: Element):
    chart = page.panel("held-out weighted sum").all("div", "wide")[0].all("svg")[0]
    names = {
        group.attributes["data-key"]: group.all("text")[0] for group in chart.all("g", "series") if group.all("text")
    }
    assert {key: label.text for key, label in names.items()} == {
        "dancegrpo": "DanceGRPO", "mixgrpo": "MixGRPO", "awm": "AWM", "diffusion-nft": "DiffusionNFT",
    }  # fmt: skip
    heights = sorted(float(label.attributes["y"]) for label in chart.all("text", "label"))
    assert all(above + 13.9 <= below for above, below in pairwise(heights))
    chips = page.all("button", "chip")
    assert [chip.text for chip in chips] == ["DanceGRPO", "MixGRPO", "AWM", "DiffusionNFT"]
    assert len({chip.classes[-1] for chip in chips}) == 4
    assert chips[0].classes[-1] == "k12"  # the target method is in ink


def test_more_methods_than_colours_are_dashed(tmp_path: Path):
    runs: dict[str, list[FakeCourse | None]] = {
        f"m{number}": [FakeCourse(evals={0: {"ocr": 0.5}, 10: {"ocr": 0.5 + number / 100}})] for number in range(16)
    }
    page = write(tmp_path, runs)
    keys = [(chip.classes[-1], "dashed" in chip.all("i")[0].classes) for chip in page.all("button", "chip")]
    assert len(set(keys)) == 16
    chart = page.panel("held-out ocr").all("svg")[0]
    dashed = {group.attributes["data-key"] for group in chart.all("g", "series") if group.all("path", "dashed")}
    assert dashed == {f"m{number}" for number in range(12, 16)}


def test_the_race_shows_medians_seeds_and_who_never_got_there(page: Element, results: dict[str, Any]):
    table = page.section("verdicts").all("table", "lanes")[0]
    lanes = {row.attributes["data-key"]: row for row in table.all("tbody")[0].all("tr")}
    for method in results["methods"]:
        lane, reach = lanes[method["name"]], method["reach"]
        assert len(lane.all("b")) == reach["reached"]
        assert lane.all("td")[-1].text == f"{reach['reached']} of 3"
        share = reach["median_ratio"]["seconds"]
        assert lane.all("td")[1].text == ("not reached" if share is None else f"{share:.2f}")
        assert bool(lane.all("i", "open")) == (share is None)
    shares = [float(row.all("td")[1].text) for row in lanes.values() if row.all("td")[1].text != "not reached"]
    assert shares == sorted(shares)


def test_pictures_of_a_prompt_stand_side_by_side_from_the_same_noise(folder: Path, page: Element):
    index = json.loads((folder / "mixgrpo" / "seed-0" / "samples" / "index.json").read_text())
    strips = page.section("pictures").all("figure", "strip")
    assert [strip.all("figcaption")[0].text for strip in strips] == index["prompts"][:12]
    for strip in strips:
        shots = strip.all("div", "cell")
        assert [shot.all("span")[0].text for shot in shots] == ["before", "DanceGRPO", "MixGRPO", "AWM", "DiffusionNFT"]
        assert all("crisp" in shot.all("img")[0].classes for shot in shots)


def test_large_pictures_are_scaled_down(tmp_path: Path):
    run = FakeCourse(evals={0: {"ocr": 0.5}, 10: {"ocr": 0.6}}, skill={0: 0.1, 10: 0.9})
    folder = fake.write_comparison(tmp_path, {"a": [run]})
    for picture in (folder / "a" / "seed-0" / "samples").glob("*/*.png"):
        Image.open(picture).resize((720, 480)).save(picture)
    page = read_page(write_comparison(folder).read_text(encoding="utf-8"))
    image = page.section("pictures").all("img")[0]
    assert (image.attributes["width"], image.attributes["height"]) == ("320", "213")
    assert "crisp" not in image.classes


def test_a_missing_picture_and_other_prompts_leave_their_place_empty(tmp_path: Path):
    courses: dict[str, list[FakeCourse | None]] = {
        name: [FakeCourse(evals={0: {"ocr": 0.5}, 10: {"ocr": 0.6}}, skill={0: 0.1, 10: 0.9})]
        for name in ("a", "b", "c")
    }
    folder = fake.write_comparison(tmp_path, courses)
    (folder / "b" / "seed-0" / "samples" / "000010" / "000.png").unlink()
    index = folder / "c" / "seed-0" / "samples" / "index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "prompts": ["something else", *content["prompts"][1:]]}))
    page = read_page(write_comparison(folder).read_text(encoding="utf-8"))
    first, second, *_ = page.section("pictures").all("figure", "strip")
    assert [bool(shot.all("img")) for shot in first.all("div", "cell")] == [True, True, False, False]
    assert [bool(shot.all("img")) for shot in second.all("div", "cell")] == [True] * 4


def test_samplers_are_shown_with_their_gap(page: Element, results: dict[str, Any]):
    table = page.section("samplers").all("table", "lanes")[0]
    for row in table.all("tbody")[0].all("tr"):
        method = next(m for m in results["methods"] if m["name"] == row.attributes["data-key"])
        gap = method["gap_after"]["weighted sum"]
        assert row.all("td")[1].text == f"{gap['training']['mean']:.3f}"
        assert row.all("td")[2].text == f"{gap['ode']['mean']:.3f}"
        assert row.all("td")[3].text == f"+{gap['gap']['mean']:.3f}"
        assert {css for dot in row.all("b") for css in dot.classes} == {"full", "hollow"}


def test_setup_tells_commands_versions_and_the_settings_that_differ(page: Element):
    section = page.section("setup")
    commands = [code.text for code in section.all("dl", "commands")[0].all("code")]
    assert commands[0].startswith("mixgrpo compare flux-nano --methods dancegrpo mixgrpo awm diffusion-nft --seeds 3")
    assert commands[1] == "mixgrpo compare --resume runs/compare-flux-nano"
    assert "60 minutes given: the time it was given was over" in section.all("dt")[0].text
    assert "mixgrpo 0.2.0, torch 2.13.0+cpu" in section.text
    differ = rows(section.all("table", "differ")[0])
    assert differ["rollout.kernel"] == ["dance_sde", "flow_sde", "flow_sde", "flow_sde"]
    assert differ["rollout.eta"] == ["0.3", "0.7", "0.7", "0.7"]
    assert "seed" not in differ
    shared = rows_of_settings(section)
    assert shared["rollout.num_steps"] == "10"
    assert "rollout.eta" not in shared
    links = [link.attributes["href"] for link in section.all("table", "runs")[0].all("a")]
    assert links[:2] == ["dancegrpo/seed-0/report.html", "dancegrpo/seed-1/report.html"]


def rows_of_settings(section: Element) -> dict[str, str]:
    table = section.all("table", "settings")[0]
    return {row.all("th")[0].text: row.all("td")[0].text for row in table.all("tr")}


def test_text_of_a_comparison_cannot_become_markup(tmp_path: Path):
    evil = "<script>alert(\"a\" & 'b')</script>"
    run = FakeCourse(evals={0: {evil: 0.5}, 10: {evil: 0.6}}, rewards=[{"name": evil, "weight": 1.0}])
    page = write(tmp_path, {"a": [run], "b": [run]}, titles={"a": evil, "b": evil}, model=evil)
    assert len(page.all("script")) == 1
    assert page.all("h1")[0].text == f"{evil} and {evil} on {evil}"
    assert page.all("button", "chip")[0].text == evil


def test_an_unfinished_comparison_says_so(tmp_path: Path):
    folder = write_large(tmp_path / "large", methods=METHODS[:2], seeds=2, unfinished=True)
    page = read_page(write_comparison(folder).read_text(encoding="utf-8"))
    status = page.all("p", "status")[0]
    assert "open" in status.classes
    assert status.text.startswith("2 of 4 runs at their end")
    assert "1 of 2 runs" in page.all("table", "rewards")[0].text
    assert "10 iterations not at its end" in page.section("setup").text


def test_a_comparison_of_nothing_yet_has_a_page(tmp_path: Path):
    page = write(tmp_path, {"a": [None], "b": [None]})
    assert page.all("p", "empty-note")[0].text == "No method has been evaluated yet."
    assert "not begun" in page.section("setup").text
    assert (tmp_path / "table.md").is_file()


def test_one_method_alone_has_a_page(tmp_path: Path):
    page = write(tmp_path, {"a": [FakeCourse(evals={0: {"ocr": 0.5}, 10: {"ocr": 0.6}})]})
    assert page.all("h1")[0].text == "a on flux-nano"
    assert rows(page.all("table", "rewards")[0])["a"] == ["0.600"]


def test_results_that_cannot_be_written_are_told(tmp_path: Path):
    folder = fake.write_comparison(tmp_path, {"a": [FakeCourse(evals={0: {"ocr": 0.5}})]})
    (folder / "table.md").mkdir()
    with pytest.raises(ConfigError, match=r"table\.md is a folder"):
        write_comparison(folder)
