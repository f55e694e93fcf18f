"""The point of it all, in small: the reward goes up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mixgrpo.config.schema import Config
from mixgrpo.train.loop import train

METHODS: dict[str, dict[str, dict[str, object]]] = {
    "mixgrpo": {},
    "flash": {"rollout": {"tail_ratio": 0.5, "tail_order": 2}, "window": {"size": 1}},
    "all-steps-dance-lora": {
        "rollout": {"kernel": "dance_sde", "eta": 0.5},
        "window": {"type": "all", "trained_fraction": 0.6, "size": None, "interval": None},
        "lora": {"rank": 4},
        "optim": {"lr": 2e-2},
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_heldout_reward_rises_on_a_short_run(method: str, tmp_path: Path, make_config: Callable[..., Config]) -> None:
    config = make_config(
        iterations=12,
        rewards=[{"name": "brightness"}],
        eval={"every": 12},
        **{"loss": {"clip_range": 1e-2}, "optim": {"lr": 4e-3}, "rollout": {"group_size": 8, "micro_batch": 16}}
        | METHODS[method],
    )
    train(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    before, after = [row["rewards"]["brightness"] for row in rows if row["kind"] == "eval"]
    spread = next(row["rewards"]["brightness"]["group_std"] for row in rows if row["kind"] == "train")
    print("GAIN", (after - before) / spread, before, after, spread)
    assert after > before + 2 * spread
