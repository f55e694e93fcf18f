"""Memory that runs out in a command is one message, and costs no checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mixgrpo.cli import main
from mixgrpo.config.load import dump_resolved, load_config
from mixgrpo.config.schema import Config
from mixgrpo.models.pipeline import PipelineModel
from mixgrpo.train import export
from mixgrpo.train.loop import train
from mixgrpo.train.policy import Policy
from mixgrpo.train.update import Updater

MakeConfig = Callable[..., Config]


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.25 GiB. Process 7 has 22 GiB in use.")


def fail(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    capsys.readouterr()
    assert main(line) == 2
    message = capsys.readouterr().err
    assert message.splitlines()[-1].startswith("mixgrpo: the memory ran out while ")
    assert "Tried to allocate 2.25 GiB" in message
    assert "Process" not in message
    assert "Traceback" not in message
    return message


def test_a_run_whose_memory_runs_out_keeps_its_checkpoint_and_goes_on_with_less(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run, settings = tmp_path / "whole", tmp_path / "run", tmp_path / "settings.json"
    dump_resolved(make_config(iterations=2), settings)
    train(make_config(iterations=2), whole)
    right, updates = Updater.update, []

    def second_is_too_large(self: Updater, *args: Any, **rest: Any) -> Any:
        updates.append(None)
        return full() if len(updates) == 2 else right(self, *args, **rest)

    monkeypatch.setattr(Updater, "update", second_is_too_large)
    message = fail(capsys, "train", str(settings), "--output", str(run))
    assert "while updating" in message
    assert "The checkpoint step-000001 is whole" in message
    assert "--loss.micro-batch 1" in message
    assert "--lora.rank" not in message, "a run that has begun cannot change what it trains"
    assert f"train --resume {run}" in message
    # as the message says
    resolved = json.loads((run / "resolved.json").read_text())
    resolved["loss"]["micro_batch"] = 4
    (run / "resolved.json").write_text(json.dumps(resolved))
    assert main(["train", "--resume", str(run)]) == 0
    ours, theirs = (export.load_run_model(folder, "last").transformer.state_dict() for folder in (run, whole))
    assert [name for name in ours if not torch.allclose(ours[name], theirs[name], atol=1e-5)] == []


def test_memory_that_runs_out_at_the_start_leaves_the_command_as_it_was(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dump_resolved(make_config(), tmp_path / "settings.json")
    monkeypatch.setattr(Policy, "__init__", full)
    message = fail(capsys, "train", str(tmp_path / "settings.json"), "--output", str(tmp_path / "run"))
    assert "while loading the model" in message
    assert "Nothing is saved yet" in message
    assert "--lora.rank 32" in message
    assert not (tmp_path / "run").exists()


def test_commands_that_draw_say_what_takes_less(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (96, 32)).save(tmp_path / "image.png")
    monkeypatch.setattr(PipelineModel, "decode", full)
    prompt, out = ["--prompt", "a picture"], ["--output", str(tmp_path / "out")]
    lines = (
        ["sample", "flux-nano", *prompt, *out, "--steps", "1"],
        ["evaluate", "flux-nano", "--num-prompts", "1", "--steps", "1", "--rewards", "jpeg"],
        ["edit", "flux-nano", *prompt, *out, "--to", "b", "--image", str(tmp_path / "image.png"), "--steps", "2"],
    )
    for line in lines:
        message = fail(capsys, *line)
        assert "while editing" in message if line[0] == "edit" else "while drawing" in message
        assert "--dtype bfloat16, --offload, --quantize int8, a smaller --height and --width" in message
    monkeypatch.setattr(PipelineModel, "__init__", full)
    assert "while loading the model" in fail(capsys, "sample", "flux-nano", *prompt, "--output", str(tmp_path / "no"))


def test_another_error_of_torch_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(PipelineModel, "decode", wrong)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main(["sample", "flux-nano", "--prompt", "a", "--steps", "1", "--output", str(tmp_path / "out")])


def test_drawing_and_training_quantise_and_exports_are_whole(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(make_config(iterations=1, lora={"rank": 2}), run)
    settings = load_config(run / "resolved.json")
    quantised = settings.model.model_copy(update={"quantize": "int8"})
    dump_resolved(settings.model_copy(update={"model": quantised}), run / "resolved.json")
    asked, load_model = [], export.load_model

    def load(path: str, **options: Any) -> Any:
        asked.append((options["quantize"], options["device"]))
        options["quantize"] = "off"  # the libraries for it are not in dev
        return load_model(path, **options)

    monkeypatch.setattr(export, "load_model", load)
    monkeypatch.setattr("mixgrpo.models.load_model", load)
    line = ["--prompt", "a picture", "--steps", "1", "--output"]
    assert main(["sample", str(run), *line, str(tmp_path / "of-run")]) == 0
    assert main(["sample", str(run / "export"), *line, str(tmp_path / "of-adapter")]) == 0
    assert main(["export", str(run), "--merge", "--output", str(run / "whole")]) == 0
    assert main(["sample", str(run / "whole"), *line, str(tmp_path / "of-whole")]) == 0
    assert main(["sample", str(run), "--quantize", "off", *line, str(tmp_path / "asked")]) == 0
    assert asked == [("int8", "auto"), ("int8", "auto"), ("off", "cpu"), ("off", "auto"), ("off", "auto")]
