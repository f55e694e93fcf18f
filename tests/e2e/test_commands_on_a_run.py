"""The program as a user meets it: a short run as a process, interrupted and resumed, then every command on it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from mixgrpo.cli import main
from mixgrpo.config.load import dump_resolved
from mixgrpo.config.schema import Config
from mixgrpo.train.checkpoint import find_checkpoint, load_weights

MIXGRPO = (sys.executable, "-m", "mixgrpo")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_run_of_two_iterations_from_start_to_hybrid_pictures(
    tmp_path: Path,
    make_config: Callable[..., Config],
    environment: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    tiny_folder: Path,
) -> None:
    settings, run = tmp_path / "settings.json", tmp_path / "run"
    dump_resolved(make_config(iterations=2, optim={"lr": 1e-2}), settings)
    done = subprocess.run(
        [*MIXGRPO, "train", str(settings), "--output", str(run)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert str(run / "report.html") in done.stdout.replace("\n", "")

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["start", "eval", "train", "train", "eval", "end"]
    assert (run / "resolved.json").is_file()
    assert "<svg" in (run / "report.html").read_text()
    sheets = json.loads((run / "samples" / "index.json").read_text())["sheets"]
    assert [sheet["iteration"] for sheet in sheets] == [0, 2]
    with Image.open(run / "samples" / sheets[1]["files"][0]) as image:
        assert image.size == (32, 16)
    FluxPipeline.from_pretrained(run / "export")

    small = ["--steps", "3", "--which", "last"]
    assert main(["sample", str(run), "--prompt", "a picture", "--output", str(tmp_path / "tuned"), *small]) == 0
    hybrid = ["--base", str(tiny_folder), "--tuned-fraction", "0.5"]
    assert (
        main(["sample", str(run), "--prompt", "a picture", "--output", str(tmp_path / "mixed"), *small, *hybrid]) == 0
    )
    assert (tmp_path / "tuned" / "0000.png").read_bytes() != (tmp_path / "mixed" / "0000.png").read_bytes()

    capsys.readouterr()
    image = str(tmp_path / "tuned" / "0000.png")
    same = ["--image", image, "--prompt", "a picture", "--to", "a picture", *small]
    assert main(["edit", str(run), "--output", str(tmp_path / "same"), *same]) == 0
    assert "cycle-sde only gives the image back" in capsys.readouterr().out
    assert _pixels(tmp_path / "same" / "edited.png") == _pixels(Path(image))

    assert main(["evaluate", str(run), "--rewards", "brightness", "--json", *small]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0.0 < found["rewards"]["brightness"] < 1.0
    assert 0.0 < found["diversity"] < 1.0

    assert main(["export", str(run), "--output", str(tmp_path / "last"), "--which", "last"]) == 0
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()


def test_edits_with_a_model_that_nothing_is_known_about(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image then says how large the model draws; a mask alone has what is inside it drawn anew."""
    image, mask = Image.effect_noise((40, 24), 90).convert("RGB"), Image.new("L", (40, 24), 0)
    mask.paste(255, (9, 3, 30, 14))
    image.save(tmp_path / "image.png")
    mask.save(tmp_path / "mask.png")
    line = ["edit", str(tiny_folder), "--image", str(tmp_path / "image.png"), "--prompt", "a picture"]
    line += ["--mask", str(tmp_path / "mask.png"), "--steps", "2", "--max-sequence-length", "32", "--seed", "3"]
    found = {}
    for name, options in {"mask": [], "both": ["--to", "b"], "ode": ["--to", "b", "--method", "ode"]}.items():
        assert main([*line, *options, "--output", str(tmp_path / name)]) == 0
        index = json.loads((tmp_path / name / "index.json").read_text())
        found[name] = (index["method"], index["to"], index["strength"], index["num_steps"], index["seed"])
        assert index["file"] == "edited.png"
        before, after = _pixels(tmp_path / "image.png"), _pixels(tmp_path / name / "edited.png")
        free = [value == 255 for value in _pixels(tmp_path / "mask.png")]
        assert all(one == other for one, other, may in zip(before, after, free, strict=True) if not may)
        assert any(one != other for one, other in zip(before, after, strict=True))
    assert found == {
        "mask": ("sde", "a picture", 0.95, 2, 3),
        "both": ("cycle-sde", "b", 0.95, 2, 3),
        "ode": ("ode", "b", 0.95, 2, 3),
    }
    assert len({_pixels(tmp_path / name / "edited.png") for name in found}) == 3
    assert "gives the image back" not in capsys.readouterr().out


def _pixels(path: Path) -> tuple[object, ...]:
    with Image.open(path) as image:
        return tuple(image.getdata())


def test_sigterm_saves_and_the_printed_command_gives_the_uninterrupted_run(
    tmp_path: Path, make_config: Callable[..., Config], environment: dict[str, str]
) -> None:
    settings, whole, parts = tmp_path / "settings.json", tmp_path / "whole", tmp_path / "parts"
    dump_resolved(make_config(iterations=6, rollout={"num_steps": 12}, eval={"every": 100}), settings)
    process = subprocess.Popen(
        [*MIXGRPO, "train", str(settings), "--output", str(parts)], stdout=subprocess.PIPE, text=True, env=environment
    )
    log = parts / "metrics.jsonl"
    for _ in range(600):
        if log.exists() and '"train"' in log.read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    command = f"train --resume {parts}"
    assert command in printed.replace("\n", "")
    again = subprocess.run([*MIXGRPO, "train", "--resume", str(parts)], capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    subprocess.run(
        [*MIXGRPO, "train", str(settings), "--output", str(whole)], check=True, capture_output=True, env=environment
    )
    expected = load_weights(find_checkpoint(whole, "last"), averaged=False)
    found = load_weights(find_checkpoint(parts, "last"), averaged=False)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
