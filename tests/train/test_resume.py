"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mixgrpo.config.schema import Config
from mixgrpo.train.checkpoint import find_checkpoint
from mixgrpo.train.loop import train

_TIMES = {"time", "seconds", "timing", "peak_memory"}


class StopAt:
    """A sink that sends SIGINT to its own process when a phase of an iteration begins."""

    def __init__(self, iteration: int, phase: str) -> None:
        self.iteration, self.phase = iteration, phase
        self.done = 0

    def record(self, row: Mapping[str, Any]) -> None:
        self.done += row["kind"] == "train"

    def progress(self, phase: str, done: int, total: int) -> None:
        if self.done == self.iteration and phase == self.phase:
            self.done = -1
            signal.raise_signal(signal.SIGINT)

    def close(self) -> None: ...


def _rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] in ("train", "eval")]
    return [{key: value for key, value in row.items() if key not in _TIMES} for row in rows]


def _state(run: Path) -> dict[str, torch.Tensor]:
    folder = find_checkpoint(run, "last")
    return {
        f"{file.name}:{key}": value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()
    }


VARIANTS: dict[str, dict[str, dict[str, object]]] = {
    "full": {},
    "lora-ema-kl": {"lora": {"rank": 2}, "optim": {"lr": 1e-2, "ema_decay": 0.5}, "loss": {"kl_weight": 0.1}},
    "flash-updates": {
        "rollout": {"tail_ratio": 0.5, "tail_order": 2},
        "window": {"size": 1},
        "loss": {"updates_per_iteration": 2},
        "optim": {"warmup": 2, "schedule": "cosine"},
    },
    "nft-lagging": {
        "rollout": {"kernel": "ode", "noise_spread": 1.0, "tail_order": 2},
        "loss": {"type": "nft", "clip_range": None, "old_decay_rate": 0.2, "updates_per_iteration": 2},
        "advantages": {"extremes": 1, "std": "batch"},
        "lora": {"rank": 2},
        "optim": {"lr": 1e-2, "ema_decay": 0.5},
        "eval": {"training_sampler": True},
    },
    "neighbor": {
        "rollout": {"kernel": "ode", "noise_spread": 0.3, "tail_order": 2},
        "window": {"type": "all", "num_trained": 2, "size": None, "interval": None},
        "loss": {"type": "neighbor", "anchors": 2, "kl_weight": 0.1},
        "advantages": {"quasi_norm": 0.8},
    },
    "awm": {
        "rollout": {"kernel": "ode", "noise_spread": 1.0},
        "loss": {"type": "awm", "updates_per_iteration": 2, "update_split": "prompts"},
    },
    "flash-dual-extremes": {
        "rollout": {"tail_ratio": 0.5, "tail_order": 2, "head_ratio": 0.5, "num_steps": 7},
        "window": {"type": "frozen", "start": 3, "size": 2, "interval": None},
        "advantages": {"extremes": 1},
        "loss": {"ratio": "normalised", "step_weights": "inverse_step", "updates_per_iteration": 2},
        "eval": {"training_sampler": True},
    },
}
PHASES = ["sampling", "updating", "evaluating"]
INTERRUPTIONS = [
    *((variant, phase) for variant in ("full", "lora-ema-kl", "flash-updates", "nft-lagging") for phase in PHASES),
    ("neighbor", "updating"),
    ("awm", "updating"),
    ("flash-dual-extremes", "training sampler"),
]


@pytest.mark.parametrize(("variant", "phase"), INTERRUPTIONS)
def test_resumed_run_equals_uninterrupted_run(
    variant: str, phase: str, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    config = make_config(**VARIANTS[variant])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(config, whole).reason == "finished"

    stopped = train(config, parts, sinks=[StopAt(2, phase)])
    assert stopped.reason == "interrupted"
    assert stopped.iteration in (2, 3)  # 3 when the first of several updates was already taken
    assert train(config, parts, resume=True).reason == "finished"

    expected, found = _state(whole), _state(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert _rows(whole) == _rows(parts)
    state = json.loads((find_checkpoint(parts, "last") / "state.json").read_text())
    assert state == json.loads((find_checkpoint(whole, "last") / "state.json").read_text())


def test_training_moves_the_weights(tmp_path: Path, make_config: Callable[..., Config], tiny_folder: Path) -> None:
    train(make_config(iterations=1), tmp_path / "run")
    before = load_file(tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    after = load_file(find_checkpoint(tmp_path / "run", "last") / "trained.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_interrupted_before_the_first_iteration_resumes_from_the_start(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    config = make_config(iterations=1)
    assert train(config, tmp_path / "run", sinks=[StopAt(0, "evaluating")]).iteration == 0
    assert train(config, tmp_path / "run", resume=True).reason == "finished"
    assert [row["kind"] for row in _rows(tmp_path / "run")] == ["eval", "train", "eval"]
