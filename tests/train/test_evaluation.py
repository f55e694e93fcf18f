"""Evaluations: by ODE sampling, and a second time the way training draws, from the same noise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixgrpo.config.schema import Config
from mixgrpo.train.loop import train


def _evaluations(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "eval"]


@pytest.mark.parametrize("kernel", ["ode", "flow_sde"])
def test_a_run_with_the_corrected_third_order_formula_can_be_evaluated(
    kernel: str, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    loss = {"type": "awm"} if kernel == "ode" else {}
    rollout = {"kernel": kernel, "noise_spread": 1.0, "tail_order": 3, "tail_variant": "corrected"}
    train(make_config(iterations=1, rollout=rollout, loss=loss, eval={"training_sampler": True}), tmp_path / "run")
    first, last = _evaluations(tmp_path / "run")
    assert first["rewards"] != first["training_sampler"]["rewards"]
    assert last["rewards"] != last["training_sampler"]["rewards"]
