"""`mixgrpo train --dry-run` as users call it."""

import json
import time
from pathlib import Path

import pytest

from mixgrpo.cli import main
from mixgrpo.config.presets import preset_names
from mixgrpo.dry.settings import MARK

SHORT = ["--rollout.num_steps", "5", "--eval.num_steps", "3", "--rollout.group_size", "4", "--window.size", "2"]


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to an empty folder whose temporary files are in `temporary`, without a network."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said_by(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_preset_goes_through_and_says_how_to_start_the_run(
    somewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "flux-nano", "--dry-run", *SHORT, "--optim.lr", "1e-5"]) == 0
    said = said_by(capsys)
    (folder,) = (somewhere / "temporary").iterdir()
    assert f"report {folder / 'report.html'}" in said
    assert MARK in (folder / "report.html").read_text()
    assert "swapped flux-nano: a random FluxPipeline, 8 x 8 pixels" in said
    assert "reward ocr: as it is" in said
    assert "iterations 40 -> 2, prompts_per_iteration 10 -> 1" in said
    assert said.endswith(f"train flux-nano {' '.join(SHORT)} --optim.lr 1e-5")
    assert not (somewhere / "runs").exists()


def test_a_large_model_needs_no_network_and_no_gpu(somewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--model.device", "cpu", "--model.quantize", "nf4", "--lora.rank", "4"]
    assert main(["train", "flux1-dev", *settings, "--dry-run", "--output", "out", *SHORT]) == 0
    said = said_by(capsys)
    assert "black-forest-labs/FLUX.1-dev: a random FluxPipeline, 16 x 16 pixels" in said
    assert "note model.quantize 'nf4' was left out" in said
    assert said.endswith(f"train flux1-dev {' '.join([*settings, *SHORT])}")
    resolved = json.loads((somewhere / "out" / "resolved.json").read_text())
    assert (resolved["lora"]["rank"], resolved["iterations"]) == (4, 2)
    assert (somewhere / "out" / "export" / "pytorch_lora_weights.safetensors").is_file()
    assert not (somewhere / ".cache" / "mixgrpo").exists()


def test_a_dry_run_that_fails_leaves_nothing_behind(somewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (somewhere / "plain.txt").write_text("\n".join(f"a thing without a word {number}" for number in range(40)))
    line = ["train", "flux-nano", "--dry-run", *SHORT, "--prompts.train", "plain.txt", "--prompts.heldout", "split:8"]
    for output in ([], ["--output", "out"]):
        assert main([*line, *output]) == 2
        assert "double quotes" in capsys.readouterr().err
    assert not (somewhere / "out").exists()
    assert list((somewhere / "temporary").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_goes_through(preset: str, somewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.process_time()
    assert main(["train", preset, "--dry-run"]) == 0
    with capsys.disabled():
        print(f"  {preset}: {time.process_time() - begun:.1f} s of a core")
