"""A model of clips through everything: training, resuming, what is kept, the report, and the commands."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from PIL import Image, ImageSequence
from PIL.WebPImagePlugin import WebPImageFile
from safetensors.torch import load_file

from mixgrpo.cli import main
from mixgrpo.config.schema import Config
from mixgrpo.errors import ConfigError, ModelError
from mixgrpo.report.exported import loading_code, read_exported
from mixgrpo.train.checkpoint import find_checkpoint
from mixgrpo.train.export import export_run
from mixgrpo.train.loop import train
from mixgrpo.train.samples import save_sample
from tests.models.families import save
from tests.models.test_parity import load
from tests.train.test_resume import StopAt, _rows, _state

FRAMES, SIDE = 5, 32


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("wan2.1", tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("wan2.2-a14b", tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture
def clip_config(make_config: Callable[..., Config]) -> Callable[..., Config]:
    def make(folder: Path, **sections: dict[str, object]) -> Config:
        model = {"path": str(folder), "height": SIDE, "width": SIDE, "num_frames": FRAMES, "guidance_scale": 1.0}
        settings = {
            "rollout": {"group_size": 3, "micro_batch": 4},
            "optim": {"lr": 1e-2},
            "eval": {"samples": 4, "every": 2},
            **sections,
        }
        settings["model"] = {**model, **sections.get("model", {})}
        return make_config(iterations=2, rewards=[{"name": "brightness"}], **settings)

    return make


def _brightness(clip: Path) -> float:
    with Image.open(clip) as image:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
    pixels = torch.tensor([list(frame.tobytes()) for frame in frames], dtype=torch.float32)
    return pixels.mean().item() / 255.0


def test_a_model_of_clips_trains_on_a_reward_of_images_and_its_report_plays_the_clips(
    wan: Path, clip_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(clip_config(wan), run).reason == "finished"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    updates = [row for row in rows if row["kind"] == "train"]
    assert [row["window"] for row in updates] == [[0, 2], [1, 3]]
    assert all(row["grad_norm"] > 0 and row["rewards"]["brightness"]["failed"] == 0 for row in updates)

    sheets = json.loads((run / "samples" / "index.json").read_text())["sheets"]
    evaluations = [row for row in rows if row["kind"] == "eval"]
    assert [sheet["iteration"] for sheet in sheets] == [row["iteration"] for row in evaluations] == [0, 2]
    for sheet, evaluation in zip(sheets, evaluations, strict=True):
        files = [run / "samples" / file for file in sheet["files"]]
        assert [file.name for file in files] == [f"{number:03d}.webp" for number in range(4)]
        with Image.open(files[0]) as image:
            assert isinstance(image, WebPImageFile)
            assert (image.size, image.n_frames) == ((SIDE, SIDE), FRAMES)
        # the reward is the mean over frames of what is on disk, as far as WebP keeps it
        kept = sum(_brightness(file) for file in files) / len(files)
        assert kept == pytest.approx(evaluation["rewards"]["brightness"], abs=0.02)
    assert evaluations[1]["rewards"]["brightness"] != evaluations[0]["rewards"]["brightness"]

    page = (run / "report.html").read_text()
    for sheet in sheets:
        data = base64.b64encode((run / "samples" / sheet["files"][0]).read_bytes()).decode()
        assert f'src="data:image/webp;base64,{data}"' in page


@pytest.mark.parametrize("phase", ["sampling", "updating"])
def test_a_resumed_run_of_two_transformers_equals_an_uninterrupted_one(
    two_stages: Path, clip_config: Callable[..., Config], tmp_path: Path, phase: str
) -> None:
    config = clip_config(
        two_stages,
        model={"guidance_scale": 3.0, "guidance_scale_2": 2.0},
        lora={"rank": 2},
        window={"stride": 2},
        rollout={"num_steps": 5, "group_size": 3, "micro_batch": 4},
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    assert train(config, parts, sinks=[StopAt(1, phase)]).reason == "interrupted"
    assert train(config, parts, resume=True).reason == "finished"
    assert _rows(whole) == _rows(parts)
    expected, found = _state(whole), _state(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    # steps 0 and 1 are the first transformer's, 2 and 3 have sigmas .818 and .667: both were trained
    ups = {name: tensor for name, tensor in expected.items() if "lora_B" in name and name.startswith("trained")}
    for part in (":transformer.", ":transformer_2."):
        assert all(tensor.abs().max() > 0 for name, tensor in ups.items() if part in name)
        assert any(part in name for name in ups)

    export_run(whole, tmp_path / "last", which="last", merge=True)
    exported, base = WanPipeline.from_pretrained(tmp_path / "last"), WanPipeline.from_pretrained(two_stages)
    for part in ("transformer", "transformer_2"):
        after, before = getattr(exported, part).state_dict(), getattr(base, part).state_dict()
        assert after.keys() == before.keys()
        assert {name for name in after if not torch.equal(after[name], before[name])} == {
            name for name in after if ".to_" in name and name.endswith("weight")
        }
    assert (tmp_path / "last" / "lora" / "transformer_2" / "pytorch_lora_weights.safetensors").is_file()


def test_an_adapter_of_two_transformers_loads_as_its_card_says_and_for_the_commands(
    two_stages: Path, clip_config: Callable[..., Config], tmp_path: Path
) -> None:
    run, settings = tmp_path / "run", {"model": {"guidance_scale": 3.0, "guidance_scale_2": 2.0}, "lora": {"rank": 2}}
    train(clip_config(two_stages, **settings), run)
    adapter = export_run(run, run / "adapter", which="last")  # beside the settings that it was drawn with
    exported = read_exported(adapter)
    assert exported is not None
    assert exported.call["guidance_scale_2"] == 2.0
    lines = loading_code(exported, str(adapter))
    assert "load_into_transformer_2=True" in (adapter / "README.md").read_text()
    loaded: dict[str, Any] = {}
    exec("\n".join(lines[: lines.index("result = pipe(")]), loaded)
    trained = load_file(find_checkpoint(run, "last") / "trained.safetensors")
    for part in ("transformer", "transformer_2"):
        weights = {name: p for name, p in getattr(loaded["pipe"], part).named_parameters() if "lora_" in name}
        expected = {name.removeprefix(f"{part}."): p for name, p in trained.items() if name.startswith(f"{part}.")}
        assert {name.replace("default_0", "default") for name in weights} == expected.keys()
        assert all(torch.equal(p, expected[name.replace("default_0", "default")]) for name, p in weights.items())

    drawn = []
    for name, source in (("a", [str(run), "--which", "last"]), ("b", [str(adapter)])):
        assert main(["sample", *source, "--prompt", "one", "--steps", "3", "--output", str(tmp_path / name)]) == 0
        drawn.append((tmp_path / name / "0000.webp").read_bytes())
    assert drawn[0] == drawn[1]
    (adapter / "transformer_2" / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load("wan2.2-a14b", two_stages).load_lora(adapter)


def test_an_export_keeps_what_wan_keeps_in_float32(
    wan: Path, clip_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(clip_config(wan, model={"dtype": "bfloat16", "autocast": "bfloat16"}, optim={"lr": 1e-4}), run)
    trained = load_file(find_checkpoint(run, "best") / "trained.safetensors")
    exported = load_file(run / "export" / "transformer" / "diffusion_pytorch_model.safetensors")
    exact = "condition_embedder.time_embedder.linear_1.weight"
    assert torch.equal(exported[exact], trained[exact])
    assert not torch.equal(trained[exact], trained[exact].bfloat16().float()), "nothing that rounding would show"
    assert exported["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16


def test_the_commands_draw_clips_of_a_run_and_refuse_to_edit_them(
    wan: Path, clip_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, small = tmp_path / "run", ["--steps", "2"]
    train(clip_config(wan, lora={"rank": 2}), run)
    prompts = ["--prompt", "one", "--prompt", "two"]
    assert main(["sample", str(run), *prompts, "--output", str(tmp_path / "clips"), *small]) == 0
    assert "2 clips in" in capsys.readouterr().out
    index = json.loads((tmp_path / "clips" / "index.json").read_text())
    assert index["prompts"] == {"0000.webp": "one", "0001.webp": "two"}
    with Image.open(tmp_path / "clips" / "0001.webp") as image:
        assert isinstance(image, WebPImageFile)
        assert image.n_frames == FRAMES
    still = ["--num-frames", "1"]
    assert main(["sample", str(run), *prompts, "--output", str(tmp_path / "images"), *small, *still]) == 0
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["0000.png", "0001.png", "index.json"]

    assert main(["evaluate", str(run), "--num-prompts", "2", "--json", *small]) == 0
    image = ["--image", str(tmp_path / "images" / "0000.png"), "--prompt", "one", "--to", "two", *small]
    assert main(["edit", str(run), *image, "--output", str(tmp_path / "edited")]) == 2
    assert "only single images can be edited: give --num-frames 1" in " ".join(capsys.readouterr().err.split())
    assert main(["edit", str(run), *image, "--output", str(tmp_path / "edited"), *still]) == 0


def test_num_frames_that_the_model_cannot_draw_end_the_run_before_it_begins(
    wan: Path, clip_config: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"model\.num_frames \(6\) .* nearest: 5 or 9"):
        train(clip_config(wan, model={"num_frames": 6}), tmp_path / "run")


def test_a_clip_is_kept_frame_by_frame_in_their_order(tmp_path: Path) -> None:
    levels = [0.0, 0.25, 0.5, 0.75, 1.0]
    clip = torch.tensor(levels)[:, None, None, None].expand(5, 3, 16, 16)
    assert save_sample(clip, tmp_path, "a") == "a.webp"
    with Image.open(tmp_path / "a.webp") as image:
        frames = [frame.convert("L").getpixel((8, 8)) for frame in ImageSequence.Iterator(image)]
        assert image.info["loop"] == 0
    assert frames == pytest.approx([255 * level for level in levels], abs=4)
    assert save_sample(clip[2], tmp_path, "b") == "b.png"
