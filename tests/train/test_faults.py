"""Rewards that fail inside a run, runs that must stop, and what they leave behind."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mixgrpo.config.load import dump_resolved, load_config
from mixgrpo.config.schema import Config
from mixgrpo.errors import CheckpointError, ConfigError, RewardError, TrainingError
from mixgrpo.rewards import Scores
from mixgrpo.train.checkpoint import find_checkpoint
from mixgrpo.train.console import ConsoleSink
from mixgrpo.train.guard import check_collapse, longest_streak
from mixgrpo.train.loop import Trainer, train
from mixgrpo.train.state import RunState


class Faulty:
    """Brightness that fails for the pictures of some calls in a way of one's choice."""

    name = "faulty"

    def __init__(self, fault: str, share: float) -> None:
        self.fault, self.share = fault, share

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = images.mean((1, 2, 3))
        bad = torch.arange(len(images)) % 4 < 4 * self.share
        if self.fault == "nan":
            return torch.where(bad, math.nan, scores)
        if self.fault == "raise" and bool(bad.any()) and (len(images) > 1 or float(scores[0]) < 0.5):
            raise ValueError("this picture is too dark")
        if self.fault == "hang":
            time.sleep(2.0)
        return scores


def make_faulty(fault: str, share: float = 0.25) -> Faulty:
    return Faulty(fault, share)


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _train_rows(run: Path) -> list[dict[str, Any]]:
    return [row for row in _rows(run) if row["kind"] == "train"]


def _faulty(fault: str, **options: object) -> list[dict[str, object]]:
    use = {
        "name": "faulty",
        "use": f"{__name__}:make_faulty",
        "options": {"fault": fault, **options},
        "timeout": 1.0,
    }
    return [use, {"name": "brightness"}]


def test_nan_scores_are_counted_and_left_out(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    train(make_config(iterations=1, rewards=_faulty("nan")), tmp_path / "run")
    row = _train_rows(tmp_path / "run")[0]
    assert row["rewards"]["faulty"]["failed"] == 2  # one of every four
    assert row["rewards"]["brightness"]["failed"] == 0
    assert 0.1 < row["rewards"]["faulty"]["mean"] < 0.9
    assert row["skipped_groups"] == 0


class Judge:
    """Remembers the prompts that it was asked about."""

    name = "judge"
    seen: ClassVar[list[str]] = []

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        self.seen.extend(prompts)
        return Scores(images.mean((1, 2, 3)), {"exact": torch.ones(len(images))})


def test_a_reward_for_evaluation_only_sees_no_picture_of_training(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    judge = {"name": "judge", "use": f"{__name__}:Judge", "weight": 0.0, "evaluation_only": True}
    plain, judged = [{"name": "brightness"}], [judge, {"name": "brightness"}]
    Judge.seen.clear()
    for name, rewards in (("plain", plain), ("judged", judged)):
        train(make_config(iterations=2, rewards=rewards), tmp_path / name)
    assert len(Judge.seen) == 2 * 4  # two evaluations of all held-out prompts
    assert all(prompt.startswith("a held-out picture") for prompt in Judge.seen)
    rows, plain_rows = _train_rows(tmp_path / "judged"), _train_rows(tmp_path / "plain")
    assert [set(row["rewards"]) for row in rows] == [{"brightness"}] * 2
    assert [row["details"] for row in rows] == [{}] * 2
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain_rows], "training is the same without it"
    lines = (tmp_path / "judged" / "metrics.jsonl").read_text().splitlines()
    evals = [row for row in map(json.loads, lines) if row["kind"] == "eval"]
    assert [set(row["rewards"]) for row in evals] == [{"judge", "brightness"}] * 2
    assert [row["details"] for row in evals] == [{"judge/exact": 1.0}] * 2
    assert [set(row["failed"]) for row in evals] == [{"judge", "brightness"}] * 2


@pytest.mark.parametrize("fault", ["nan", "hang"])
def test_reward_that_fails_too_often_stops_the_run_by_name(
    fault: str, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    config = make_config(iterations=1, rewards=_faulty(fault, share=1.0))
    with pytest.raises(RewardError, match="faulty"):
        train(config, tmp_path / "run")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "end"
    assert "faulty" in last["reason"]


def _state(means: Sequence[float], spread: float = 0.1, *, known: int | None = None) -> RunState:
    """Return the state of a run in which brightness had these means, and jpeg rose."""
    count = len(means) if known is None else known
    return RunState(
        iteration=len(means),
        reward_history={"brightness": list(means), "jpeg": [0.01 * index for index in range(len(means))]},
        reward_spread={"brightness": [spread] * count, "jpeg": [0.1] * count},
    )


@pytest.mark.parametrize("start", [0.5, 0.02, 0.0, -3.0, 22.0])
def test_collapsed_reward_stops_the_run_wherever_its_zero_is(start: float, make_config: Callable[..., Config]) -> None:
    config = make_config()
    assert config.guard.max_reward_drop_std == 1.5
    healthy, collapsed = [start] * 10 + [start - 0.14] * 10, [start] * 10 + [start - 0.16] * 10
    check_collapse(_state(healthy), config)
    check_collapse(_state([start] * 10 + [start + 5.0] * 10), config)
    with pytest.raises(
        TrainingError, match=r"'brightness' has collapsed: .* 1\.6 standard deviations of single samples"
    ):
        check_collapse(_state(collapsed), config)
    with pytest.raises(TrainingError, match="brightness"):  # in other units
        check_collapse(_state([100 * mean for mean in collapsed], 10.0), config)
    check_collapse(_state(collapsed[:18]), config)  # too early to tell
    check_collapse(_state(collapsed, 0.0), config)  # nothing to measure by
    check_collapse(_state(collapsed), make_config(guard={"max_reward_drop_std": 1.7}))
    measured = make_config(rewards=[{"name": "brightness", "weight": 0.0}, {"name": "jpeg"}])
    check_collapse(_state(collapsed), measured)  # not trained on


def test_a_run_from_an_older_checkpoint_is_guarded_once_ten_deviations_are_known(
    make_config: Callable[..., Config],
) -> None:
    collapsed = [0.5] * 10 + [0.2] * 20
    check_collapse(_state(collapsed, known=0), make_config())
    check_collapse(_state(collapsed, known=9), make_config())
    with pytest.raises(TrainingError, match="brightness"):
        check_collapse(_state(collapsed, known=10), make_config())


def test_a_checkpoint_without_deviations_is_resumed(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    run = tmp_path / "run"
    train(make_config(iterations=2), run)
    file = find_checkpoint(run, "last") / "state.json"
    state = json.loads(file.read_text())
    rows = _train_rows(run)
    for name in ("brightness", "jpeg"):
        assert state["reward_history"][name] == [row["rewards"][name]["mean"] for row in rows]
        assert state.get("reward_spread", {})[name] == [row["rewards"][name]["std"] for row in rows]
    del state["reward_spread"]
    file.write_text(json.dumps(state))
    train(make_config(iterations=3), run, resume=True)
    state = json.loads((find_checkpoint(run, "last") / "state.json").read_text())
    assert [len(state[key]["brightness"]) for key in ("reward_history", "reward_spread")] == [3, 1]


def test_the_older_setting_is_refused_with_the_name_of_the_new_one(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    dump_resolved(make_config(), tmp_path / "old.json")
    old = json.loads((tmp_path / "old.json").read_text())
    old["guard"] = {"max_reward_drop": 0.4}
    (tmp_path / "old.json").write_text(json.dumps(old))
    with pytest.raises(ConfigError, match=r"max_reward_drop; did you mean guard\.max_reward_drop_std\?"):
        load_config(tmp_path / "old.json")


def test_streak_of_skipped_updates_is_counted_in_a_row_and_across_iterations() -> None:
    assert longest_streak(0, [True, False, True, True, False]) == (2, 0)
    assert longest_streak(3, [True, True, False, False]) == (5, 0)
    assert longest_streak(2, [False, True]) == (2, 1)
    assert longest_streak(1, [True]) == (2, 2)


def test_updates_that_are_never_finite_stop_the_run(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    config = make_config(iterations=9, optim={"lr": 1e30}, guard={"max_skipped_updates": 2, "max_failed_rewards": 1.0})
    with pytest.raises((TrainingError, RewardError)):
        train(config, tmp_path / "run")


def test_heldout_prompts_among_those_to_train_on_are_left_out_there(
    tmp_path: Path, make_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(iterations=1)
    prompts = Path(config.prompts.train).read_text().splitlines()
    Path(config.prompts.heldout).write_text("\n".join([*prompts[2:], "another picture"]))
    trainer = Trainer(config, tmp_path / "run", resume=False, sinks=[ConsoleSink(config)])
    assert list(trainer.prompts) == prompts[:2]
    trainer.run_all()
    trainer.close()
    said = capsys.readouterr().out.splitlines()[2]
    assert said == "  note     4 of the 5 held-out prompts stand in prompts.train too; not trained on"
    (start,) = [row for row in _rows(tmp_path / "run") if row["kind"] == "start"]
    assert start["prompts"]["shared"] == 4


def test_with_all_prompts_held_out_there_is_nothing_to_train_on(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    config = make_config(prompts={"heldout": str(tmp_path / "train.txt")})
    with pytest.raises(ConfigError, match=r"holds 0 prompts that are not in prompts\.heldout \(6 are\), fewer than"):
        train(config, tmp_path / "run")


def test_too_few_prompts_are_told_before_a_model_is_loaded(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    config = make_config(model={"path": "no-such-model"})
    Path(config.prompts.train).write_text("only one\n")
    with pytest.raises(ConfigError, match="prompts_per_iteration"):
        train(config, tmp_path / "run")


def test_resume_of_another_model_is_refused(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    train(make_config(iterations=1), tmp_path / "run")
    with pytest.raises(CheckpointError, match="does not fit"):
        train(make_config(iterations=2, lora={"rank": 2}), tmp_path / "run", resume=True)
    (tmp_path / "run" / "checkpoints" / "last.txt").write_text("step-000099\n")
    with pytest.raises(CheckpointError, match="step-000099"):
        train(make_config(iterations=2), tmp_path / "run", resume=True)
