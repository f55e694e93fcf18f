"""The point of it all, in small: flux-nano's reward goes up."""

import json
from pathlib import Path

import pytest

from mixgrpo.config.load import load_config
from mixgrpo.train.loop import train

SMALL = [
    *("--iterations", "6", "--prompts-per-iteration", "4", "--rollout.group-size", "6", "--rollout.micro-batch", "24"),
    *("--loss.micro-batch", "24", "--eval.every", "6", "--eval.num-prompts", "16", "--checkpoint.every", "6"),
    *("--optim.lr", "3e-4", "--optim.warmup", "0", "--optim.schedule", "constant"),
    *("--rewards.1.name", "brightness", "--rewards.1.use", "brightness", "--rewards.0.weight", "0"),
]
METHODS = {
    "flux-nano": ["--window.interval", "2"],
    "flux-nano-mixgrpo-flash-star": ["--lora.rank", "8", "--optim.lr", "3e-3"],
}


@pytest.mark.parametrize("preset", METHODS)
def test_heldout_reward_rises_on_a_short_run(preset: str, tmp_path: Path) -> None:
    config = load_config(preset, [*SMALL, *METHODS[preset]])
    train(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    before, after = [row["rewards"]["brightness"] for row in rows if row["kind"] == "eval"]
    assert after > before + 0.02
