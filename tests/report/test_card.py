"""The model card of an export: what it says, against what the run's files say."""

import ast
import json
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mixgrpo.config.load import load_config
from mixgrpo.config.presets import model_names
from mixgrpo.report import write_report
from mixgrpo.report.card import find_licence, write_card
from mixgrpo.report.exported import Exported
from mixgrpo.rewards import REWARDS

MakeRun = Callable[..., Path]
DEV = "black-forest-labs/FLUX.1-dev"


def write(run: Path, folder: Path, **changes: object) -> tuple[dict, str]:
    """Write a card and return its metadata and the rest."""
    folder.mkdir(exist_ok=True)
    values: dict = {
        "version": "0.0",
        "base": DEV,
        "run": "signs",
        "step": "step-000060",
        "is_adapter": True,
        "pipeline": "FluxPipeline",
        "dtype": "bfloat16",
        "call": {"height": 32, "num_inference_steps": 8},
    }
    write_card(run, folder, Exported(**(values | changes)), where="anna/signs")
    empty, metadata, body = (folder / "README.md").read_text().split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(metadata), body


def table(body: str, head: str) -> list[list[str]]:
    """Return the rows below the head that starts with `head`."""
    lines = body.split(f"| {head} ", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_metadata_of_an_adapter_and_of_a_whole_model(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    found, _ = write(run, tmp_path / "a")
    assert found["base_model"] == DEV
    assert found["base_model_relation"] == "adapter"
    assert found["library_name"] == "diffusers"
    assert found["pipeline_tag"] == "text-to-image"
    assert (found["license"], found["license_name"]) == ("other", "flux-1-dev-non-commercial-license")
    assert "lora" in found["tags"]
    assert found["instance_prompt"] is None
    for entry in found["widget"]:
        assert (tmp_path / "a" / entry["output"]["url"]).is_file()
    found, body = write(run, tmp_path / "b", is_adapter=False, base="flux-nano", call={"num_frames": 9})
    assert "base_model" not in found  # it is on no hub
    assert found["pipeline_tag"] == "text-to-video"
    assert found["license"] == "apache-2.0"
    assert "load_lora_weights" not in body


def test_nothing_of_this_machine_is_told(make_run: MakeRun, tmp_path: Path) -> None:
    base = tmp_path / "secret" / "my-flux"
    base.mkdir(parents=True)
    found, body = write(make_run(), tmp_path / "a", base=str(base))
    assert "base_model" not in found
    assert (found["license"], found["license_name"]) == ("other", "see-base-model")
    assert "my-flux" in body
    assert "secret" not in body
    assert str(tmp_path) not in body


def test_a_base_models_own_card_says_the_licence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: odd\nlicense_link: LICENSE\n---\n# x\n")
    assert find_licence(DEV, tmp_path) == {"license": "other", "license_name": "odd"}
    (tmp_path / "README.md").write_text("# no metadata\n")
    assert find_licence(DEV, tmp_path)["license_name"] == "flux-1-dev-non-commercial-license"
    assert find_licence("some/model", tmp_path) == {}


def test_figures_are_those_of_the_log_and_the_exported_ones_stand_out(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(iterations=60)
    logged = {
        row["iteration"]: row
        for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if row["kind"] == "eval"
    }
    _, body = write(run, tmp_path / "a", step="step-000040")
    assert "40 iterations" in body
    rows = table(body, "iteration")
    assert [row[0] for row in rows] == ["0", "10", "20", "30", "**40**", "50", "60"]
    for row in rows:
        iteration = int(row[0].strip("*"))
        assert row[1].strip("*") == f"{logged[iteration]['rewards']['ocr']:.3f}"
    before, after = (logged[number]["rewards"]["ocr"] for number in (0, 40))
    figures = {row[0]: row for row in table(body, "figure")}
    assert figures["`ocr`"][1:3] == [f"{before:.3f}", f"{after:.3f}"]
    assert figures["`ocr`"][3].startswith(f"{after - before:+.3f}")


def test_the_schedule_of_the_figures_is_told_from_the_pipelines_own(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    config = json.loads((run / "resolved.json").read_text())
    config["rollout"]["shift"] = 2.5
    (run / "resolved.json").write_text(json.dumps(config))
    _, body = write(run, tmp_path / "a")
    use = body.split("## Use")[1].split("\n## ")[0]
    assert "pipeline's own noise schedule" in use
    assert "time shift 2.5" in use


def test_the_code_names_every_argument_and_takes_the_gpu_if_there_is_one(make_run: MakeRun, tmp_path: Path) -> None:
    _, body = write(make_run(), tmp_path / "a", pipeline="Flux2Pipeline")
    code = body.split("```python\n")[1].split("```")[0]
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and _called(node) == "pipe"]
    assert call.args == []
    assert {"prompt", "height", "num_inference_steps"} <= {keyword.arg for keyword in call.keywords}
    assert 'pipe.to("cuda" if torch.cuda.is_available()' in code


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def test_many_evaluations_are_thinned_but_not_the_one_that_counts(make_run: MakeRun, tmp_path: Path) -> None:
    _, body = write(make_run(iterations=120, eval_every=2), tmp_path / "a", step="step-000046")
    numbers = [int(row[0].strip("*")) for row in table(body, "iteration")]
    assert len(numbers) <= 12
    assert numbers[0] == 0
    assert numbers[-1] == 120
    assert 46 in numbers
    assert numbers == sorted(set(numbers))


def test_the_picture_shows_both_sheets(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    _, body = write(run, tmp_path / "a")
    assert "![" in body
    index = json.loads((run / "samples" / "index.json").read_text())
    sheets = {sheet["iteration"]: sheet["files"] for sheet in index["sheets"]}
    with Image.open(tmp_path / "a" / "samples.png") as grid:
        grid.load()
        for iteration in (0, 60):  # the first prompt's picture is there, each pixel twice as large
            with Image.open(run / "samples" / sheets[iteration][0]) as picture:
                small = picture.convert("RGB")
            factor = 256 // max(small.size)
            wanted = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)
            places = [
                top
                for top in range(grid.height - wanted.height + 1)
                if grid.crop((8, top, 8 + wanted.width, top + wanted.height)).tobytes() == wanted.tobytes()
            ]
            assert places, iteration


@pytest.mark.parametrize("step", ["step-000000", "step-000013"])
def test_without_both_sheets_there_is_no_picture(make_run: MakeRun, tmp_path: Path, step: str) -> None:
    found, body = write(make_run(), tmp_path / "a", step=step)
    assert "![" not in body
    assert "widget" not in found
    assert ("untouched base model" in body) == (step == "step-000000")


def test_rewards_of_ones_own_and_prompts_with_markdown_are_shown_as_they_are(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    config = json.loads((run / "resolved.json").read_text())
    config["rewards"].append({"name": "mine", "use": "my_module:factory", "options": {"url": "http://10.0.0.7"}})
    (run / "resolved.json").write_text(json.dumps(config))
    index = json.loads((run / "samples" / "index.json").read_text())
    index["prompts"][0] = "a *star* [x](y)\n# no title | <b>"
    (run / "samples" / "index.json").write_text(json.dumps(index))
    _, body = write(run, tmp_path / "a")
    assert "`my_module:factory`" in body
    assert "10.0.0.7" not in body
    assert r"1. a \*star\* \[x\](y) \# no title \| \<b\>" in body


def test_the_command_is_that_of_the_preset_with_what_differs(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    config = json.loads(load_config("flux-nano-nft").model_dump_json())
    config["optim"]["lr"] = 5e-5
    config["prompts"]["train"] = "/home/anna/signs.txt"
    config["rewards"][0]["options"] = dict.fromkeys(config["rewards"][0]["options"], 7)
    config["model"]["threads"] = 5
    (run / "resolved.json").write_text(json.dumps(config))
    _, body = write(run, tmp_path / "a")
    line = next(line for line in body.splitlines() if line.startswith("mixgrpo train"))
    assert line == "mixgrpo train flux-nano-nft --prompts.train signs.txt --optim.lr 5e-05"
    assert "DiffusionNFT, [arXiv 2509.16117](https://arxiv.org/abs/2509.16117)" in body


def test_every_built_in_reward_and_base_model_of_a_preset_has_its_words() -> None:
    words = tomllib.loads((resources.files("mixgrpo.report") / "assets" / "card.toml").read_text(encoding="utf-8"))
    assert words["rewards"].keys() == REWARDS.keys()
    assert all(load_config(model).model.path in words["licences"] for model in model_names())


def test_card_and_page_say_which_prompts_were_trained_on_and_which_held_out(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    _, body = write(run, tmp_path / "before")
    assert "prompts trained on" not in body, "a run from before it was written down"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kind"] == "start"
    rows[0]["prompts"] = {
        "training": {"source": "/home/anna/signs.txt", "prompts": 9600, "empty": 1, "duplicates": 2, "too_long": 30},
        "heldout": {"source": "split:256", "prompts": 256, "empty": 0, "duplicates": 0, "conflicts": 0},
        "shared": 0,
    }
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    _, body = write(run, tmp_path / "card")
    trained = "9,600 from signs.txt; 3 empty or double lines left out; 30 longer than the text encoder reads, cut"
    assert ["prompts trained on", trained] in table(body, "setting")
    assert ["prompts held out", "256 of the same source"] in table(body, "setting")
    assert "anna/signs.txt" not in body
    page = write_report(run).read_text()
    assert f"<dt>Prompts trained on</dt><dd>{trained}</dd>" in page
    assert "<dt>Prompts held out</dt><dd>256 of the same source</dd>" in page
