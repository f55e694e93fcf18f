"""A run that deceives its reward, from training to the console and the page."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from torch import Tensor

from mixgrpo.config.schema import Config
from mixgrpo.train.console import ConsoleSink
from mixgrpo.train.loop import train

Reward = Callable[[Tensor, Sequence[str]], Tensor]


def make_light() -> Reward:
    return lambda images, prompts: images.mean((1, 2, 3))


def make_dark() -> Reward:
    return lambda images, prompts: 1.0 - images.mean((1, 2, 3))


def test_a_reward_that_costs_what_a_judge_sees_raises_the_alarm(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    rewards: list[dict[str, object]] = [
        {"name": "light", "use": f"{__name__}:make_light"},
        {"name": "dark", "use": f"{__name__}:make_dark", "weight": 0.0, "evaluation_only": True},
    ]
    config = make_config(
        iterations=6,
        rewards=rewards,
        optim={"lr": 1e-2},
        eval={"every": 3},
        loss={"clip_range": 1e-1},
        guard={"min_diversity": 0.0},
    )
    stream = io.StringIO()
    sink = ConsoleSink(config, Console(file=stream, width=100))
    train(config, tmp_path / "run", sinks=[sink])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (row for row in rows if row["kind"] == "eval")
    rise = last["rewards"]["light"] - first["rewards"]["light"]
    assert rise > 2 * last["standard_errors"]["light"], "the run of this test has to learn"
    said = [line for line in stream.getvalue().splitlines() if "ALARM" in line]
    assert len(said) == 1
    assert "The independent judge disagrees. light (" in said[0]
    assert "but dark (" in said[0]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The independent judge disagrees" in page[: page.index('id="pictures"')]
    assert rows[-1]["reason"] == "finished"
