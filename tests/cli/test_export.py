"""`mixgrpo export` as a user meets it: what is written, said and uploaded. A fake hub keeps what it gets."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from mixgrpo.cli import main
from mixgrpo.commands import sample
from mixgrpo.commands.models import Drawing, read_drawing
from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.errors import CheckpointError
from mixgrpo.models.pipeline import PipelineModel
from mixgrpo.train.loop import train

RUN_FILES = {"README.md", "samples.png", "images/1.png", "images/2.png"}
ADAPTER_FILES = {"pytorch_lora_weights.safetensors", "comfyui_lora.safetensors"}


@dataclass
class FakeHub:
    """What `HfApi` does, as far as it is used, with the hub's own way of leaving files out."""

    is_private: bool | None = False
    failure: Exception | None = None
    created: list[tuple[str, bool | None]] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
        if self.failure:
            raise self.failure
        assert exist_ok
        self.created.append((repo_id, private))
        return f"https://huggingface.co/{repo_id}"

    def model_info(self, repo_id: str) -> Any:
        assert repo_id == self.created[-1][0]
        return SimpleNamespace(private=self.is_private)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str], commit_message: str
    ) -> None:
        assert repo_id == self.created[-1][0]
        assert commit_message
        names = [file.relative_to(folder_path).as_posix() for file in folder_path.rglob("*") if file.is_file()]
        for name in filter_repo_objects(names, ignore_patterns=ignore_patterns):
            self.uploaded[name] = (folder_path / name).read_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    return fake


@pytest.fixture
def lora_run(tmp_path: Path, make_config: Callable[..., Config]) -> Path:
    run = tmp_path / "run"
    # Held-out figures that every iteration betters, so that the best checkpoint is the last.
    train(make_config(iterations=2, lora={"rank": 2}, optim={"lr": 1e-2}, eval={"every": 1}), run)
    return run


def fail(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    capsys.readouterr()
    assert main(list(line)) == 2
    message = capsys.readouterr().err
    assert message.startswith("mixgrpo: ")
    assert "Traceback" not in message
    return message


def test_what_is_uploaded_is_the_export_and_nothing_of_the_run(
    lora_run: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    capsys.readouterr()
    assert main(["export", str(lora_run), "--which", "last", "--push", "anna/signs"]) == 0
    assert hub.created == [("anna/signs", None)]
    assert set(hub.uploaded) == RUN_FILES | ADAPTER_FILES
    card = hub.uploaded["README.md"].decode()
    assert 'pipe.load_lora_weights("anna/signs")' in card
    assert str(tmp_path) not in card
    printed = capsys.readouterr().out
    assert "https://huggingface.co/anna/signs" in printed
    assert 'pipe.load_lora_weights("anna/signs")' in printed


def test_a_merged_export_is_uploaded_whole(lora_run: Path, hub: FakeHub, tmp_path: Path) -> None:
    line = ["export", str(lora_run), "--merge", "--which", "last", "--output", str(tmp_path / "whole")]
    hub.is_private = True
    assert main([*line, "--push", "anna/signs", "--private"]) == 0
    assert hub.created == [("anna/signs", True)]
    assert {f"lora/{name}" for name in ADAPTER_FILES} <= set(hub.uploaded)
    assert {"model_index.json", "transformer/diffusion_pytorch_model.safetensors"} <= set(hub.uploaded)
    assert not any("optimizer" in name or "checkpoint" in name or "mixgrpo" in name for name in hub.uploaded)


def test_what_lies_in_the_folder_by_mistake_stays_here(hub: FakeHub, tmp_path: Path) -> None:
    from mixgrpo.commands.hub import push

    for name in (
        "README.md",
        "mixgrpo.json",
        "optimizer.safetensors",
        "checkpoints/step-1/trained.safetensors",
        ".env",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    push(tmp_path, "anna/signs", private=False)
    assert set(hub.uploaded) == {"README.md"}


def test_a_public_model_is_not_taken_for_a_private_one(
    lora_run: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "public" in fail(capsys, "export", str(lora_run), "--push", "anna/signs", "--private")
    assert hub.uploaded == {}


def _answer(status: int) -> HfHubHTTPError:
    request = httpx2.Request("POST", "https://huggingface.co/api/repos/create")
    return HfHubHTTPError("no", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (_answer(401), "token is not valid"),
        (_answer(403), "may not write to anna"),
        (_answer(404), "no such owner"),
        (_answer(500), "answered 500"),
        (httpx2.ConnectError("name resolution failed"), "cannot be reached (name resolution failed)"),
        (httpx2.ReadTimeout("slow"), "cannot be reached"),
        (OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE"),
    ],
)
def test_what_the_hub_refuses_is_one_message(hub: FakeHub, tmp_path: Path, failure: Exception, words: str) -> None:
    from mixgrpo.commands.hub import push
    from mixgrpo.errors import HubError

    hub.failure = failure
    with pytest.raises(HubError, match="anna/signs was not uploaded") as caught:
        push(tmp_path, "anna/signs", private=False)
    assert words in str(caught.value)


def test_a_wrong_name_or_no_token_is_found_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resolved.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for name in ("signs", "anna/si gns", "a/b/c", "https://huggingface.co/anna/signs"):
        assert "OWNER/NAME" in fail(capsys, "export", str(tmp_path), "--push", name)
    assert "hf auth login" in fail(capsys, "export", str(tmp_path), "--push", "anna/signs")
    assert [file.name for file in tmp_path.iterdir()] == ["resolved.json"]


def test_a_family_without_names_in_comfyui_gets_no_file_and_is_told(
    lora_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixgrpo.models.flux import FluxModel

    assert issubclass(FluxModel, PipelineModel)
    monkeypatch.setattr(FluxModel, "comfyui_layers", "")
    capsys.readouterr()
    assert main(["export", str(lora_run)]) == 0
    assert "no file for it was written: it is not known" in capsys.readouterr().out
    assert not (lora_run / "export" / "comfyui_lora.safetensors").exists()
    assert "ComfyUI" not in (lora_run / "export" / "README.md").read_text()


def test_sample_and_evaluate_take_an_adapter_as_they_take_its_run(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(lora_run), "--which", "last", "--output", str(lora_run / "export")]) == 0
    line = ["--prompt", "a picture", "--steps", "3"]
    for name, model in (("of-run", [str(lora_run), "--which", "last"]), ("of-adapter", [str(lora_run / "export")])):
        assert main(["sample", *model, *line, "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "of-run" / "0000.png").read_bytes() == (tmp_path / "of-adapter" / "0000.png").read_bytes()
    assert main(["evaluate", str(lora_run / "export"), "--steps", "3"]) == 0
    # Elsewhere it says itself how large its pictures are, and so on.
    assert main(["export", str(lora_run), "--which", "last", "--output", str(tmp_path / "mine")]) == 0
    assert main(["sample", str(tmp_path / "mine"), *line, "--output", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "0000.png").read_bytes() == (tmp_path / "of-run" / "0000.png").read_bytes()


def read_source(*line: str) -> Drawing:
    found = sample.make_parser().parse_args([*line, "--output", "x"])
    return read_drawing(found, seed=0)


def write_export(folder: Path, **values: Any) -> str:
    """Write what an export says of itself."""
    call = {
        "height": 48,
        "width": 80,
        "guidance_scale": 2.5,
        "max_sequence_length": 99,
        "negative_prompt": "blurry",
        "num_inference_steps": 7,
    }
    base = {"version": "0", "base": "black-forest-labs/FLUX.1-dev", "run": "r", "step": "step-000003"}
    folder.mkdir(parents=True)
    (folder / "mixgrpo.json").write_text(json.dumps({**base, "dtype": "bfloat16", "call": call, **values}))
    return str(folder)


def test_an_export_says_how_it_is_used_and_flags_say_otherwise(tmp_path: Path) -> None:
    preset = load_config("flux1-dev")
    assert (preset.model.height, preset.eval.num_steps) != (48, 7)
    for is_adapter in (True, False):
        folder = write_export(tmp_path / str(is_adapter), is_adapter=is_adapter)
        drawing = read_source(folder)
        model = drawing.model
        assert (model.height, model.width, model.num_frames, model.max_sequence_length) == (48, 80, 1, 99)
        assert (model.guidance_scale, model.guidance_scale_2, model.negative_prompt) == (2.5, 0.0, "blurry")
        assert (model.dtype, drawing.is_dtype_open, drawing.num_steps) == ("bfloat16", False, 7)
        assert model.path == (preset.model.path if is_adapter else folder)
        assert drawing.shift == preset.rollout.shift, "which it does not say, but a preset for its base does"
        flags = ["--height", "64", "--dtype", "float32", "--guidance-scale-2", "1.5", "--negative-prompt", "dull"]
        flags += ["--steps", "3", "--offload"]
        model = (drawing := read_source(folder, *flags)).model
        assert (model.height, model.width, model.dtype, model.offload) == (64, 80, "float32", True)
        assert (model.guidance_scale_2, model.negative_prompt, drawing.num_steps) == (1.5, "dull", 3)
    unknown = write_export(tmp_path / "unknown", base="somebody/else")
    assert read_source(unknown).model == read_source(folder).model.model_copy(
        update={"path": unknown, "autocast": "off", "prompt_cache": "", "gradient_checkpointing": False}
    )


def test_what_an_export_does_not_say_is_not_taken_from_a_preset(tmp_path: Path) -> None:
    preset = load_config("wan2.1-lora").model
    assert (preset.num_frames > 1, preset.negative_prompt != "") == (True, True)
    call = {"height": 48, "width": 80, "guidance_scale": 2.5, "max_sequence_length": 99, "num_inference_steps": 7}
    model = read_source(write_export(tmp_path / "e", base=preset.path, is_adapter=True, call=call)).model
    assert (model.path, model.num_frames, model.negative_prompt) == (preset.path, 1, "")


def test_a_damaged_export_is_told(tmp_path: Path) -> None:
    folder = write_export(tmp_path / "e", call={"height": "tall", "width": 8})
    with pytest.raises(CheckpointError, match=r"mixgrpo\.json is damaged: height is 'tall'.*Export the run again"):
        read_source(folder)


@pytest.mark.parametrize(
    ("stored", "loaded"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "bfloat16")]
)
def test_of_a_model_that_nothing_is_known_of_the_weights_say_the_type(
    stored: str, loaded: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor.to(getattr(torch, stored)) for name, tensor in load_file(file).items()}
    save_file({**weights, "proj_out.bias": weights["proj_out.bias"].double().float()}, file)  # one is not like the rest
    save_file({"x": torch.zeros(10**6)}, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    line = ["sample", str(folder), "--prompt", "a", "--steps", "1", "--height", "16", "--width", "32"]
    line += ["--max-sequence-length", "32", "--output"]
    assert main([*line, str(tmp_path / "a")]) == 0
    assert f"weights in {loaded}, stored as {stored}" in capsys.readouterr().err
    assert json.loads((tmp_path / "a" / "index.json").read_text())["dtype"] == loaded
    assert main([*line, str(tmp_path / "b"), "--dtype", "float32"]) == 0
    assert "stored as" not in capsys.readouterr().err
    assert json.loads((tmp_path / "b" / "index.json").read_text())["dtype"] == "float32"


def test_a_whole_export_is_loaded_in_its_own_type(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    assert main(["export", str(lora_run), "--merge", "--which", "last", "--output", str(whole)]) == 0
    marker = json.loads((whole / "mixgrpo.json").read_text())
    (whole / "mixgrpo.json").write_text(json.dumps(marker | {"dtype": "bfloat16"}))
    capsys.readouterr()
    assert main(["sample", str(whole), "--prompt", "a", "--output", str(tmp_path / "out")]) == 0
    assert "weights in bfloat16" in capsys.readouterr().err
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert (index["dtype"], index["num_steps"]) == ("bfloat16", marker["call"]["num_inference_steps"])
