"""Model calls: an iteration of every preset takes as many as `mixgrpo plan` says."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from parity.toy import LATENT, Network
from presets import PRESETS
from torch import Tensor

from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.config.sections import LoraConfig, NftLossConfig, RewardConfig
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan
from mixgrpo.flow.rollout import Trajectory, rollout
from mixgrpo.models import Conditioning
from mixgrpo.rl.window import trained_steps
from mixgrpo.train import step
from mixgrpo.train.clock import Clock, StopRequest
from mixgrpo.train.loop import make_scorer
from mixgrpo.train.objective import make_objective
from mixgrpo.train.policy import Policy
from mixgrpo.train.settings import Cost, cost_of, make_plan, make_window, mean_cost
from mixgrpo.train.step import Experience, make_kernel, sample_and_score
from mixgrpo.train.update import Updater, UpdateReport


class ToyModel:
    """The toy network as a model of pictures that counts the states it is given, with and without gradients."""

    latent_shape = LATENT
    device = torch.device("cpu")
    lora_targets = ()

    def __init__(self) -> None:
        self.transformer: Any = Network()
        self.states = {"forward": 0, "backward": 0}

    def encode(self, prompts: Sequence[str], negatives: Sequence[str] = ()) -> Conditioning:
        return Conditioning({"bias": torch.randn(len(prompts), 6, generator=torch.Generator().manual_seed(2))})

    def velocity(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        self.states["backward" if torch.is_grad_enabled() else "forward"] += len(x)
        return self.transformer(x, sigma, conditioning.tensors["bias"])

    def decode(self, x: Tensor) -> Tensor:
        return x.sigmoid()[:, None].expand(-1, 3, -1, -1)


def small(config: Config) -> Config:
    """The preset on few prompts, in full fine-tuning, with a reward that costs nothing."""
    prompts = config.loss.updates_per_iteration if config.loss.update_split == "prompts" else 2
    return config.model_copy(
        update={
            "prompts_per_iteration": prompts,
            "rewards": (RewardConfig(name="brightness"),),
            "lora": LoraConfig(),
            "rollout": config.rollout.model_copy(update={"micro_batch": 40}),
            "loss": config.loss.model_copy(update={"micro_batch": 50}),
        }
    )


def iterate(config: Config, iteration: int) -> tuple[Experience, UpdateReport, ToyModel]:
    model = ToyModel()
    policy = Policy(
        cast("Any", model),
        config.lora,
        seed=0,
        with_reference=config.loss.kl_weight > 0,
        ema_decay=0.0,
        lags=isinstance(config.loss, NftLossConfig) and config.loss.old_decay_rate > 0,
    )
    window, kernel, clock, stop = make_window(config), make_kernel(config), Clock(), StopRequest()
    scorer = make_scorer(config)
    experience = sample_and_score(
        policy,
        scorer,
        ["a prompt"] * config.prompts_per_iteration,
        config,
        plan=make_plan(config, window.at(iteration)),
        noise=Noise(config.seed, iteration, LATENT),
        kernel=kernel,
        trained=trained_steps(window, iteration),
        clock=clock,
        stop=stop,
        progress=lambda done, total: None,
    )
    scorer.close()
    optimizer = torch.optim.SGD(policy.trained.values(), lr=1e-3)
    updater = Updater(policy, optimizer, config, make_objective(config, kernel), clock)
    report = updater.update(
        experience,
        torch.randn(config.prompts_per_iteration, config.rollout.group_size),
        first_update=iteration * config.loss.updates_per_iteration,
        stop=stop,
        progress=lambda done, total: None,
    )
    return experience, report, model


def counted(config: Config, iteration: int) -> Cost:
    """Model calls per sample, as the reports have them and as the model saw them."""
    experience, report, model = iterate(config, iteration)
    assert model.states["backward"] == report.calls.update
    assert model.states["forward"] == experience.calls + report.calls.old + report.calls.reference
    assert sorted(experience.transitions) == list(trained_steps(make_window(config), iteration))
    samples = config.prompts_per_iteration * config.rollout.group_size
    calls = (experience.calls, report.calls.update, report.calls.old, report.calls.reference)
    return Cost(*(count / samples for count in calls))


def assert_same_cost(found: Cost, planned: Cost) -> None:
    for name in ("sampling", "update", "old", "reference"):
        assert getattr(found, name) == pytest.approx(getattr(planned, name), rel=1e-12), name


@pytest.mark.parametrize("name", PRESETS)
def test_an_iteration_takes_the_calls_that_were_planned(name: str) -> None:
    config = small(load_config(name))
    iteration = config.iterations // 2 + 1
    assert_same_cost(counted(config, iteration), cost_of(config, iteration, shared=config.rollout.share_trunk))


@pytest.mark.parametrize(
    "name",
    [f"flux-nano-{method}" for method in ("mixgrpo-flash", "mixgrpo-flash-dual", "mixgrpo-extremes", "dancegrpo")],
)
def test_what_sharing_saves_is_what_was_planned(name: str) -> None:
    config = small(load_config(name))
    unshared = config.model_copy(update={"rollout": config.rollout.model_copy(update={"share_trunk": False})})
    for iteration in (0, 13, 31):
        assert_same_cost(counted(config, iteration), cost_of(config, iteration, shared=True))
        assert_same_cost(counted(unshared, iteration), cost_of(config, iteration, shared=False))


@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"updates_per_iteration": 2, "kl_weight": 0.1}},
        {"loss": {"updates_per_iteration": 2}, "rollout": {"noise_spread": 0.5}, "advantages": {"extremes": 1}},
        {"loss": {"updates_per_iteration": 2, "update_split": "prompts"}, "advantages": {"extremes": 1}},
        {"window": {"type": "all", "num_trained": 2, "size": None, "interval": None}},
        {"loss": {"type": "nft", "clip_range": None}, "advantages": {"extremes": 1}},
    ],
    ids=["updates", "extremes apart", "extremes by prompts", "some of all steps", "forward process of shared trunks"],
)
def test_mean_cost_is_the_mean_over_the_iterations(
    sections: dict[str, dict[str, object]], make_config: Callable[..., Config]
) -> None:
    config = make_config(**sections)
    costs = [counted(config, iteration) for iteration in range(config.iterations)]
    planned = mean_cost(config, shared=True)
    for name in ("sampling", "update", "reference"):
        mean = sum(getattr(cost, name) for cost in costs) / len(costs)
        assert getattr(planned, name) == pytest.approx(mean, rel=1e-12), name


@pytest.mark.parametrize("method", ["mixgrpo", "mixgrpo-flash-dual", "dancegrpo", "neighbor-grpo", "nft", "awm"])
def test_trajectories_keep_no_step_that_is_not_trained(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[list[int], int]] = []

    def spy(velocity: Any, plan: TrajectoryPlan, *arguments: Any, **settings: Any) -> Trajectory:
        trajectory = rollout(velocity, plan, *arguments, **settings)
        kept.append((sorted(trajectory.transitions), plan.offset))
        return trajectory

    monkeypatch.setattr(step, "rollout", spy)
    config = small(load_config(f"flux-nano-{method}"))
    trained = trained_steps(make_window(config), 31)
    iterate(config, 31)
    expected = [] if method in ("nft", "awm") else list(trained)
    assert [[number + offset for number in numbers] for numbers, offset in kept] == [expected] * len(kept)
    assert len(kept) >= 1
