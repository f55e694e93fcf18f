"""The update phase: shared equals unshared, micro-batches change nothing, the first ratio is 1."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import LoraConfig
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.rollout import Trajectory, rollout
from mixgrpo.flow.steps import flow_sde_kernel, log_prob
from mixgrpo.models import FlowModel
from mixgrpo.rewards.scorer import ScoreTable
from mixgrpo.train.clock import Clock, StopRequest
from mixgrpo.train.export import load_policy
from mixgrpo.train.objective import make_objective
from mixgrpo.train.pieces import sample_pieces, split_shares
from mixgrpo.train.policy import Policy
from mixgrpo.train.settings import make_plan
from mixgrpo.train.step import Experience
from mixgrpo.train.update import Updater, UpdateReport, learning_rate
from tests.visits import Guests

PROMPTS = ["one picture", "another picture", "a third"]
KERNEL = partial(flow_sde_kernel, eta=0.7)
ADVANTAGES = torch.tensor([[1.0, -1.0, 0.5, -0.5], [0.2, 1.2, -0.4, -1.0], [0.0, 0.0, 0.0, 0.0]])


def _policy(model: FlowModel) -> Policy:
    return Policy(model, LoraConfig(), seed=0, with_reference=False, ema_decay=0.0)


def _experience(policy: Policy, config: Config, window: range, *, share: bool) -> Experience:
    conditioning = policy.model.encode(PROMPTS)
    trajectory: Trajectory = rollout(
        lambda x, sigma, row: policy.velocity(x, sigma, conditioning.take(row)),
        make_plan(config, window),
        Noise(3, 0, policy.model.latent_shape),
        kernel=KERNEL,
        prompts=range(len(PROMPTS)),
        group_size=4,
        micro_batch=5,
        share_trunk=share,
    )
    return Experience(conditioning, trajectory.transitions, ScoreTable({}, {}, {}), trajectory.calls)


def _updater(policy: Policy, config: Config) -> Updater:
    optimizer = torch.optim.SGD(list(policy.trained.values()), lr=0.0)
    return Updater(policy, optimizer, config, make_objective(config, KERNEL), Clock())


def _update(updater: Updater, experience: Experience, advantages: Tensor = ADVANTAGES) -> UpdateReport:
    return updater.update(experience, advantages, first_update=0, stop=StopRequest(), progress=lambda phase, done: None)


def _gradients(policy: Policy) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in policy.trained.values() if parameter.grad is not None])


@pytest.mark.parametrize("window", [range(0, 2), range(1, 4), range(2, 3)])
def test_shared_update_equals_unshared_update(
    window: range, tiny_model: FlowModel, make_config: Callable[..., Config]
) -> None:
    policy, config = _policy(tiny_model), make_config(optim={"max_grad_norm": 1e9})
    results = []
    for share in (True, False):
        updater = _updater(policy, config)
        experience = _experience(policy, config, window, share=share)
        report = _update(updater, experience)
        results.append((report, _gradients(policy), experience))
    (shared, shared_grad, shared_run), (unshared, unshared_grad, unshared_run) = results
    for step in window:
        torch.testing.assert_close(
            shared_run.transitions[step].x_next, unshared_run.transitions[step].x_next, rtol=1e-4, atol=1e-4
        )
    assert unshared_grad.norm() > 1e-3
    assert (shared_grad - unshared_grad).norm() < 1e-3 * unshared_grad.norm()
    assert shared.metrics["loss"] == pytest.approx(unshared.metrics["loss"], abs=1e-6)
    assert shared.calls.update == 3 + 12 * (len(window) - 1)
    assert unshared.calls.update == 12 * len(window)


def test_micro_batches_do_not_change_the_gradient(tiny_model: FlowModel, make_config: Callable[..., Config]) -> None:
    policy = _policy(tiny_model)
    gradients = []
    for micro_batch in (1, 5, 100):
        config = make_config(loss={"micro_batch": micro_batch}, optim={"max_grad_norm": 1e9})
        _update(_updater(policy, config), _experience(policy, config, range(1, 3), share=True))
        gradients.append(_gradients(policy))
    assert (gradients[0] - gradients[2]).norm() < 1e-3 * gradients[2].norm()
    assert (gradients[1] - gradients[2]).norm() < 1e-3 * gradients[2].norm()


def test_gradient_is_that_of_the_mean_of_advantage_times_log_prob(
    tiny_model: FlowModel, make_config: Callable[..., Config]
) -> None:
    policy, config = _policy(tiny_model), make_config(optim={"max_grad_norm": 1e9})
    experience = _experience(policy, config, range(1, 3), share=False)
    _update(_updater(policy, config), experience)
    found = _gradients(policy)

    policy.model.transformer.zero_grad()
    total = torch.zeros(())
    for transition in experience.transitions.values():
        for prompt in range(3):
            conditioning = experience.conditioning.take(torch.full((4,), prompt))
            v = policy.velocity(transition.x[prompt], transition.sigma, conditioning)
            kernel = KERNEL(transition.x[prompt], v, sigma=transition.sigma, sigma_next=transition.sigma_next)
            total = total - (ADVANTAGES[prompt] * log_prob(kernel, transition.x_next[prompt])).sum() / 24
    total.backward()
    expected = _gradients(policy)
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_ratio_is_exactly_one_at_the_first_update_and_moves_after_it(
    tiny_model: FlowModel, make_config: Callable[..., Config]
) -> None:
    policy = _policy(tiny_model)
    once = make_config()
    report = _update(_updater(policy, once), _experience(policy, once, range(1, 3), share=True))
    assert report.metrics["ratio_mean"] == report.metrics["ratio_max"] == 1.0
    assert report.metrics["clip_fraction"] == 0.0

    twice = make_config(loss={"updates_per_iteration": 2}, optim={"lr": 1e-2})
    updater = _updater(policy, twice)
    updater.optimizer = torch.optim.AdamW(list(policy.trained.values()), lr=1e-2)
    report = _update(updater, _experience(policy, twice, range(1, 3), share=True))
    assert report.metrics["ratio_max"] != 1.0
    assert set(report.steps) == {1, 2}


@pytest.mark.parametrize("split", ["samples", "prompts"])
def test_shares_of_several_updates_cover_every_sample_once(split: str, make_config: Callable[..., Config]) -> None:
    config = make_config(loss={"updates_per_iteration": 2, "update_split": split})
    seen = torch.zeros(4, 6)
    for share in split_shares(seen, config.loss):
        seen += share
    assert torch.equal(seen, torch.ones(4, 6))


def test_pieces_of_the_shared_step_hold_one_state_for_all_samples(
    tiny_model: FlowModel, make_config: Callable[..., Config]
) -> None:
    policy, config = _policy(tiny_model), make_config()
    experience = _experience(policy, config, range(1, 3), share=True)
    share = torch.tensor([True, False, True, False]).expand(3, 4)
    pieces = sample_pieces(experience.transitions, ADVANTAGES, share, micro_batch=2)
    shapes = [(piece.step, len(piece.x), piece.state.tolist()) for piece in pieces]
    assert shapes == [(1, 2, [0, 0, 1, 1]), (1, 1, [0, 0]), *[(2, 2, [0, 1])] * 3]
    assert torch.equal(torch.cat([piece.advantages for piece in pieces[:2]]), ADVANTAGES[:, [0, 2]].flatten())
    assert torch.equal(torch.cat([piece.prompt for piece in pieces[2:]]), torch.tensor([0, 0, 1, 1, 2, 2]))


def test_update_with_a_loss_that_is_not_finite_is_skipped(
    tiny_model: FlowModel, make_config: Callable[..., Config]
) -> None:
    policy, config = _policy(tiny_model), make_config()
    updater = _updater(policy, config)
    updater.optimizer = torch.optim.AdamW(list(policy.trained.values()), lr=1.0)
    before = {name: weight.detach().clone() for name, weight in policy.trained.items()}
    report = _update(updater, _experience(policy, config, range(1, 3), share=True), ADVANTAGES * math.nan)
    assert report.skipped == [True]
    assert math.isnan(report.grad_norm)
    assert all(torch.equal(before[name], weight) for name, weight in policy.trained.items())


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=2)])
def test_divergence_to_the_starting_model_is_zero_at_first_and_grows(
    lora: LoraConfig, tiny_model: FlowModel, make_config: Callable[..., Config]
) -> None:
    policy = Policy(tiny_model, lora, seed=0, with_reference=True, ema_decay=0.0)
    config = make_config(loss={"kl_weight": 1.0})
    updater = _updater(policy, config)
    updater.optimizer = torch.optim.AdamW(list(policy.trained.values()), lr=1e-2)
    experience = _experience(policy, config, range(1, 3), share=True)
    assert _update(updater, experience).metrics["kl"] == 0.0
    assert _update(updater, experience).metrics["kl"] > 1e-6


def test_an_offloaded_starting_model_visits_once_and_changes_nothing(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    reports, guests = [], Guests(monkeypatch)
    for offload in (False, True):
        config = make_config(model={"offload": offload}, loss={"kl_weight": 1.0, "updates_per_iteration": 2})
        policy = load_policy(config)
        model, frozen, away = policy.model, policy._frozen, []
        predict = model.velocity

        def spy(*args: Any, predict: Any = predict, frozen: Any = frozen, away: list[bool] = away) -> Tensor:
            away.append(guests.away(frozen))
            return predict(*args)

        monkeypatch.setattr(model, "velocity", spy)
        updater = _updater(policy, config)
        updater.optimizer = torch.optim.AdamW(list(policy.trained.values()), lr=1e-2)
        experience = _experience(policy, config, range(1, 3), share=True)
        away.clear()
        reports.append(_update(updater, experience))
        visits = [is_away for is_away, _ in itertools.groupby(away)]
        assert visits == ([False, True, False] if offload else [False])
        assert not guests.away(frozen)
    assert reports[0] == reports[1]
    assert reports[0].metrics["kl"] > 0.0


def test_learning_rate_warms_up_and_falls(make_config: Callable[..., Config]) -> None:
    def rates(total: int, **optim: object) -> Sequence[float]:
        settings = make_config(optim={"lr": 1.0, **optim}).optim
        return [learning_rate(settings, update, total) for update in range(total)]

    assert rates(4) == [1.0] * 4
    assert rates(4, warmup=3) == [0.25, 0.5, 0.75, 1.0]
    assert rates(5, schedule="linear", final_lr_fraction=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert rates(3, schedule="cosine") == pytest.approx([1.0, 0.5, 0.0])
    assert rates(1, schedule="cosine") == [1.0]


def test_every_update_has_its_own_rate(tiny_model: FlowModel, make_config: Callable[..., Config]) -> None:
    """The third and fourth update of a run of four, while the rate still rises."""
    policy = _policy(tiny_model)
    config = make_config(iterations=2, loss={"updates_per_iteration": 2}, optim={"lr": 1.0, "warmup": 3})
    updater, rates = _updater(policy, config), []
    updater.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    experience = _experience(policy, config, range(1, 3), share=True)
    updater.update(experience, ADVANTAGES, first_update=2, stop=StopRequest(), progress=lambda done, total: None)
    assert rates == pytest.approx([0.75, 1.0])


def test_average_follows_the_trained_weights_by_its_decay(tiny_model: FlowModel) -> None:
    policy = Policy(tiny_model, LoraConfig(rank=2), seed=0, with_reference=False, ema_decay=0.9)
    start = {name: weight.clone() for name, weight in policy.average.items()}
    assert all(torch.equal(weight, start[name]) for name, weight in policy.trained.items())
    for weight in policy.trained.values():
        weight.data.add_(1.0)
    policy.update_average()
    for name, weight in policy.average.items():
        torch.testing.assert_close(weight, start[name] + 0.1, rtol=0, atol=1e-6)
    with policy.averaged():
        assert all(torch.allclose(weight, start[name] + 0.1) for name, weight in policy.trained.items())
    assert all(torch.allclose(weight, start[name] + 1.0) for name, weight in policy.trained.items())
