"""A sampling policy that lags behind: how it follows, and who uses which weights."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import PROMPTS

from mixgrpo.config.schema import Config
from mixgrpo.flow.noise import Noise
from mixgrpo.train.clock import Clock, StopRequest
from mixgrpo.train.export import load_policy
from mixgrpo.train.loop import make_scorer, train
from mixgrpo.train.objective import make_objective
from mixgrpo.train.policy import Policy
from mixgrpo.train.settings import make_plan, make_window
from mixgrpo.train.step import Experience, sample_and_score
from mixgrpo.train.update import Updater

NFT = {
    "rollout": {"kernel": "ode", "noise_spread": 1.0},
    "loss": {"type": "nft", "clip_range": None, "old_decay_rate": 0.3, "old_decay_max": 0.5},
    "lora": {"rank": 2},
    "optim": {"lr": 1e-2},
    "checkpoint": {"every": 1, "keep": 10},
}


def _shift(weights: dict[str, torch.Tensor], by: float) -> None:
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(by)


@pytest.mark.parametrize("keep", [0.0, 0.25, 0.6, 1.0])
def test_sampling_policy_keeps_a_share_of_itself(keep: float, make_config: Callable[..., Config]) -> None:
    policy = load_policy(make_config(**NFT))
    old = {name: weight.clone() for name, weight in policy.lagging.items()}
    _shift({name: weight.data for name, weight in policy.trained.items()}, 0.5)
    policy.update_lagging(keep)
    for name, weight in policy.lagging.items():
        expected = keep * old[name].double() + (1 - keep) * policy.trained[name].double()
        torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-6)
        if keep in (0.0, 1.0):
            assert torch.equal(weight, policy.trained[name] if keep == 0.0 else old[name])


def test_trained_weights_come_back_even_after_an_interruption(make_config: Callable[..., Config]) -> None:
    policy = load_policy(make_config(**NFT))
    _shift(policy.lagging, 0.5)
    trained = {name: weight.detach().clone() for name, weight in policy.trained.items()}
    lagging = {name: weight.clone() for name, weight in policy.lagging.items()}
    with suppress(KeyboardInterrupt), policy.sampling():
        assert all(torch.equal(weight, lagging[name]) for name, weight in policy.trained.items())
        raise KeyboardInterrupt
    assert all(torch.equal(weight, trained[name]) for name, weight in policy.trained.items())
    assert all(torch.equal(weight, lagging[name]) for name, weight in policy.lagging.items())


@pytest.mark.parametrize("loss", [{}, {"type": "nft", "clip_range": None}])
def test_a_policy_that_does_not_lag_keeps_no_second_copy(
    loss: dict[str, object], make_config: Callable[..., Config]
) -> None:
    policy = load_policy(make_config(loss=loss))
    assert policy.lagging == {}
    before = {name: weight.detach().clone() for name, weight in policy.trained.items()}
    policy.update_lagging(0.3)
    with policy.sampling():
        assert all(torch.equal(before[name], weight) for name, weight in policy.trained.items())


def test_after_iteration_i_it_keeps_the_smaller_of_rate_times_i_and_the_largest_share(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    train(make_config(**NFT), tmp_path / "run")
    folders = [tmp_path / "run" / "checkpoints" / f"step-{done:06d}" for done in range(5)]
    lagging = load_file(folders[0] / "lagging.safetensors")
    assert all(torch.equal(w, lagging[n]) for n, w in load_file(folders[0] / "trained.safetensors").items())
    for folder, keep in zip(folders[1:], [0.0, 0.3, 0.5, 0.5], strict=True):
        trained, found = (load_file(folder / f"{name}.safetensors") for name in ("trained", "lagging"))
        for name in found:
            lagging[name] = keep * lagging[name].double() + (1 - keep) * trained[name].double()
            torch.testing.assert_close(found[name].double(), lagging[name], rtol=1e-5, atol=1e-6)
    assert not all(torch.equal(trained[name], found[name]) for name in found)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    distances = [row["old_distance"] for row in rows if row["kind"] == "train"]
    assert distances[:2] == [0.0, 0.0], "until the second iteration it is the trained policy"
    assert min(distances[2:]) > 0.0


def _sample(policy: Policy, config: Config) -> Experience:
    window = make_window(config).at(0)
    scorer = make_scorer(config)
    experience = sample_and_score(
        policy,
        scorer,
        PROMPTS[:2],
        config,
        plan=make_plan(config, window),
        noise=Noise(0, 0, policy.model.latent_shape),
        kernel=None,
        trained=tuple(window),
        clock=Clock(),
        stop=StopRequest(),
        progress=lambda done, total: None,
    )
    scorer.close()
    return experience


def test_samples_are_drawn_and_compared_with_the_lagging_weights(make_config: Callable[..., Config]) -> None:
    config = make_config(**NFT)
    policy, other = load_policy(config), load_policy(config)
    for name, weight in policy.trained.items():
        weight.data.add_(0.3)
        policy.lagging[name].add_(0.1)
        other.trained[name].data.copy_(policy.lagging[name])
        other.lagging[name].copy_(policy.lagging[name])
    drawn, expected = _sample(policy, config), _sample(other, config)
    assert drawn.transitions.keys() == expected.transitions.keys() == {0, 1}
    for step, transition in drawn.transitions.items():
        assert torch.equal(transition.x_next, expected.transitions[step].x_next)
        assert torch.equal(transition.x, expected.transitions[step].x)

    def distance(policy: Policy) -> float:
        optimizer = torch.optim.SGD(policy.trained.values(), lr=0.0)
        updater = Updater(policy, optimizer, config, make_objective(config, None), Clock())
        report = updater.update(
            drawn, torch.ones(2, 4), first_update=0, stop=StopRequest(), progress=lambda done, total: None
        )
        assert report.calls.old == report.calls.update == 16
        return report.metrics["old_distance"]

    assert distance(policy) > 1e-4
    assert distance(other) == 0.0
