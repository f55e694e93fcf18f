"""Evaluations: by ODE sampling, and a second time the way training draws, from the same noise."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import HELDOUT

from mixgrpo.config.schema import Config
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import ode_plan, plan_trajectory
from mixgrpo.flow.rollout import rollout
from mixgrpo.flow.steps import flow_sde_kernel
from mixgrpo.models import FlowModel
from mixgrpo.train.export import load_run_model
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


def _brightness(model: FlowModel, **settings: Any) -> float:
    conditioning = model.encode(HELDOUT)
    trajectory = rollout(
        lambda x, sigma, row: model.velocity(x, sigma, conditioning.take(row)),
        noise=Noise(1000, 0, model.latent_shape),
        prompts=range(len(HELDOUT)),
        group_size=1,
        micro_batch=len(HELDOUT),
        **settings,
    )
    return model.decode(trajectory.x0[:, 0]).mean().item()


def test_figures_by_both_samplers_are_those_of_rollouts_by_hand(
    tmp_path: Path, tiny_model: FlowModel, make_config: Callable[..., Config]
) -> None:
    """After the last iteration the training sampler is that of the last one."""
    config = make_config(
        iterations=2,
        rollout={"tail_ratio": 0.5, "tail_order": 2, "tail_variant": "heun", "noise_spread": 0.3},
        optim={"lr": 1e-2},
        eval={"training_sampler": True},
    )
    train(config, tmp_path / "run")
    kernel = partial(flow_sde_kernel, eta=0.7)
    cases = zip(_evaluations(tmp_path / "run"), (tiny_model, load_run_model(tmp_path / "run", "last")), strict=True)
    for start, (row, model) in enumerate(cases):
        plan = plan_trajectory(num_steps=5, shift=3.0, window=range(start, start + 2), tail_ratio=0.5, tail_order=2)
        as_trained = _brightness(model, plan=plan, kernel=kernel, tail_variant="heun")
        as_used = _brightness(model, plan=ode_plan(4, 3.0), kernel=None)
        assert row["training_sampler"]["rewards"]["brightness"] == pytest.approx(as_trained, abs=1e-6)
        assert row["rewards"]["brightness"] == pytest.approx(as_used, abs=1e-6)
        assert abs(as_trained - as_used) > 1e-5


def test_the_training_sampler_is_not_drawn_unless_asked_for_and_changes_nothing_else(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    rows = []
    for ask in (False, True):
        run = tmp_path / str(ask)
        train(make_config(iterations=1, eval={"training_sampler": ask}), run)
        rows.append(_evaluations(run))
    assert all("training_sampler" not in row for row in rows[0])
    for plain, both in zip(*rows, strict=True):
        assert plain["rewards"] == both["rewards"]
