"""What an iteration hands to its update: advantages as the settings say, and the steps that were drawn."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mixgrpo.config.schema import Config
from mixgrpo.flow.keyed import keyed_generator
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan, plan_trajectory
from mixgrpo.flow.rollout import Trajectory, rollout
from mixgrpo.flow.sigmas import shifted_sigmas
from mixgrpo.flow.steps import cps_kernel, dance_sde_kernel, flow_sde_kernel, gddim_kernel
from mixgrpo.models import FlowModel
from mixgrpo.train.loop import train
from mixgrpo.train.step import Experience
from mixgrpo.train.update import Updater, UpdateReport

KERNELS = {"flow_sde": flow_sde_kernel, "dance_sde": dance_sde_kernel, "cps": cps_kernel, "gddim": gddim_kernel}


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Experience, Tensor, int]]:
    """(experience, advantages, number of the first update) of every iteration of the runs to come."""
    kept: list[tuple[Experience, Tensor, int]] = []
    update = Updater.update

    def spy(self: Updater, experience: Experience, advantages: Tensor, **settings: Any) -> UpdateReport:
        kept.append((experience, advantages, settings["first_update"]))
        return update(self, experience, advantages, **settings)

    monkeypatch.setattr(Updater, "update", spy)
    return kept


def _expected(
    scores: dict[str, np.ndarray], weights: dict[str, float], *, mix: str, std: str, clip: float, power: float
) -> np.ndarray:
    def normalised(table: np.ndarray) -> np.ndarray:
        spread = table.std() if std == "batch" else table.std(axis=1, keepdims=True)
        return (table - table.mean(axis=1, keepdims=True)) / spread

    parts = [weights[name] * (normalised(table) if mix == "advantages" else table) for name, table in scores.items()]
    total = sum(parts) if mix == "advantages" else normalised(sum(parts))  # pyright: ignore[reportArgumentType]
    total = np.clip(total, -clip, clip)
    if power:
        total = np.sqrt(total.shape[1]) * total / (np.abs(total) ** power).sum(axis=1, keepdims=True) ** (1 / power)
    return total


@pytest.mark.parametrize("mix", ["advantages", "rewards"])
@pytest.mark.parametrize("std", ["group", "batch"])
@pytest.mark.parametrize("power", [0.0, 0.8])
def test_advantages_are_those_of_the_settings(
    mix: str,
    std: str,
    power: float,
    handed: list[tuple[Experience, Tensor, int]],
    tmp_path: Path,
    make_config: Callable[..., Config],
) -> None:
    rewards: list[dict[str, object]] = [{"name": "brightness"}, {"name": "jpeg", "weight": 0.25}]
    settings = {"mix": mix, "std": std, "clip": 0.9, "quasi_norm": power}
    train(make_config(iterations=1, rewards=rewards, advantages=settings), tmp_path / "run")
    ((experience, advantages, _),) = handed
    scores = {name: values.double().reshape(2, 4).numpy() for name, values in experience.scores.values.items()}
    weights = {"brightness": 1.0, "jpeg": 0.25}
    expected = _expected(scores, weights, mix=mix, std=std, clip=0.9, power=power)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-5)
    if not power:
        assert advantages.abs().max() == pytest.approx(0.9), "the test must reach the clip"
    whole = _expected(scores, weights, mix=mix, std=std, clip=1e9, power=0.0)
    mixed = sum(weights[name] * table for name, table in scores.items())
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[2])
    for name, table in scores.items():
        scale = np.asarray(table if mix == "advantages" else mixed)
        spread = scale.std() if std == "batch" else scale.std(axis=1, keepdims=True)
        part = weights[name] * (table - table.mean(axis=1, keepdims=True)) / spread
        share = (part * whole).sum() / (whole**2).sum()
        assert row["rewards"][name]["advantage_share"] == pytest.approx(share, rel=1e-3, abs=1e-5)


def test_updates_are_numbered_through_the_run(
    handed: list[tuple[Experience, Tensor, int]], tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    train(make_config(iterations=3, loss={"updates_per_iteration": 2}), tmp_path / "run")
    assert [first for _, _, first in handed] == [0, 2, 4]


def _by_hand(experience: Experience, model: FlowModel, plan: TrajectoryPlan, **settings: Any) -> Trajectory:
    """All prompts of the first iteration at once, with every step kept."""
    return rollout(
        lambda x, sigma, row: model.velocity(x, sigma, experience.conditioning.take(row)),
        plan,
        Noise(3, 0, model.latent_shape),
        prompts=range(2),
        group_size=4,
        micro_batch=8,
        record=range(plan.num_steps),
        **settings,
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_stochastic_steps_are_drawn_as_the_settings_say_whatever_the_chunks_of_prompts(
    kernel: str,
    handed: list[tuple[Experience, Tensor, int]],
    tmp_path: Path,
    tiny_model: FlowModel,
    make_config: Callable[..., Config],
) -> None:
    config = make_config(
        iterations=1,
        rollout={
            "kernel": kernel,
            "eta": 0.45,
            "shift": 2.0,
            "noise_spread": 0.4,
            "micro_batch": 4,
            "num_steps": 7,
            "head_ratio": 0.5,
            "tail_ratio": 0.7,
            "tail_order": 2,
            "tail_variant": "heun",
        },
        window={"type": "frozen", "start": 2, "size": 2, "interval": None},
    ).model_copy(update={"seed": 3})
    train(config, tmp_path / "run")
    ((experience, _, _),) = handed
    plan = plan_trajectory(num_steps=7, shift=2.0, window=range(2, 4), head_ratio=0.5, tail_ratio=0.7, tail_order=2)
    trajectory = _by_hand(
        experience, tiny_model, plan, kernel=partial(KERNELS[kernel], eta=0.45), noise_spread=0.4, tail_variant="heun"
    )
    assert sorted(experience.transitions) == [2, 3]
    for step, transition in experience.transitions.items():
        expected = trajectory.transitions[step - 1]
        assert (transition.sigma, transition.sigma_next) == (expected.sigma, expected.sigma_next)
        torch.testing.assert_close(transition.x, expected.x, rtol=0, atol=1e-4)
        torch.testing.assert_close(transition.x_next, expected.x_next, rtol=0, atol=1e-4)
    brightness = tiny_model.decode(trajectory.x0.flatten(0, 1)).mean((1, 2, 3))
    torch.testing.assert_close(experience.scores.values["brightness"].float(), brightness, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["nft", "awm"])
@pytest.mark.parametrize("kernel", ["ode", "flow_sde"])
def test_finished_samples_get_noise_at_the_sigmas_of_the_schedule(
    kind: str,
    kernel: str,
    handed: list[tuple[Experience, Tensor, int]],
    tmp_path: Path,
    tiny_model: FlowModel,
    make_config: Callable[..., Config],
) -> None:
    """The schedule without compressed steps; the keys of the noise go on from chunk to chunk of prompts."""
    flash = {"tail_ratio": 0.5, "head_ratio": 0.5} if kernel == "flow_sde" else {}
    spread = {"kernel": kernel, "noise_spread": 1.0, "tail_order": 2, "num_steps": 7, "micro_batch": 4, **flash}
    config = make_config(
        iterations=1,
        rollout=spread,
        window={"type": "frozen", "start": 2, "size": 2, "interval": None},
        loss={"type": kind, "clip_range": None},
    ).model_copy(update={"seed": 3})
    train(config, tmp_path / "run")
    ((experience, _, _),) = handed
    plan = plan_trajectory(
        num_steps=7, shift=3.0, window=range(2, 4) if kernel == "flow_sde" else range(0), tail_order=2, **flash
    )
    chosen = partial(flow_sde_kernel, eta=0.7) if kernel == "flow_sde" else None
    x0 = _by_hand(experience, tiny_model, plan, kernel=chosen, noise_spread=1.0).x0
    assert sorted(experience.transitions) == [2, 3]
    for step, transition in experience.transitions.items():
        sigma = shifted_sigmas(7, 3.0)[step]
        assert (transition.sigma, transition.sigma_next) == (sigma, 0.0)
        torch.testing.assert_close(transition.x_next, x0, rtol=0, atol=1e-4)
        eps = torch.stack(
            [
                torch.from_numpy(
                    keyed_generator(3, 0, prompt, member, -2 - step).standard_normal(
                        tiny_model.latent_shape, dtype=np.float32
                    )
                )
                for prompt in range(2)
                for member in range(4)
            ]
        ).reshape(x0.shape)
        torch.testing.assert_close(transition.x, (1 - sigma) * x0 + sigma * eps, rtol=0, atol=1e-4)
