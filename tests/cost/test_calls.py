"""Calls, operations and seconds that are predicted, against those of iterations that are really run."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from presets import PRESETS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.cost.calls import Batches, iteration_calls, kinds_of_iterations
from mixgrpo.cost.operations import iteration_operations, shape_of
from mixgrpo.train.loop import Trainer
from mixgrpo.train.settings import cost_of

VARIANTS: dict[str, dict[str, dict[str, object]]] = {
    "MixGRPO": {},
    "nothing shared": {"rollout": {"share_trunk": False}},
    "small batches": {"rollout": {"micro_batch": 3}, "loss": {"micro_batch": 3}},
    "two updates and a reference": {"loss": {"updates_per_iteration": 2, "kl_weight": 0.1, "micro_batch": 4}},
    "an update per prompt": {"loss": {"updates_per_iteration": 2, "update_split": "prompts"}},
    "every step": {"window": {"type": "all", "size": None, "interval": None, "trained_fraction": 0.6}},
    "Flash": {"rollout": {"tail_ratio": 0.4, "tail_order": 2}},
    "extremes": {"advantages": {"extremes": 1}},
    "adapters": {"lora": {"rank": 2}, "loss": {"kl_weight": 0.1}},
    "neighbours": {
        "rollout": {"kernel": "ode", "noise_spread": 0.3, "share_trunk": False},
        "loss": {"type": "neighbor", "anchors": 2, "clip_range": None},
    },
    "a sampling policy that lags": {
        "rollout": {"kernel": "ode", "noise_spread": 1.0, "share_trunk": False},
        "loss": {"type": "nft", "old_decay_rate": 0.1, "clip_range": None},
    },
}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[Config], Trainer]]:
    opened: list[Trainer] = []

    def start(config: Config) -> Trainer:
        opened.append(Trainer(config, tmp_path / "run", resume=False, sinks=[]))
        return opened[-1]

    yield start
    for trainer in opened:
        trainer.close()


@contextmanager
def observed(trainer: Trainer) -> Iterator[dict[str, Batches]]:
    """Note the size of every call of the transformer, with and without gradient, and of the decoder."""
    model = trainer.policy.model
    seen = {"forward": Batches(), "update": Batches(), "decode": Batches()}
    velocity, decode = model.velocity, model.decode

    def noting_velocity(x: torch.Tensor, *rest: object) -> torch.Tensor:
        seen["update" if torch.is_grad_enabled() else "forward"][len(x)] += 1
        return velocity(x, *rest)

    def noting_decode(x: torch.Tensor) -> torch.Tensor:
        seen["decode"][len(x)] += 1
        return decode(x)

    model.velocity, model.decode = noting_velocity, noting_decode
    yield seen
    model.velocity, model.decode = velocity, decode


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_iteration_makes_the_predicted_calls_and_operations(
    variant: str, make_config: Callable[..., Config], run: Callable[[Config], Trainer]
) -> None:
    config = make_config(**VARIANTS[variant])
    trainer = run(config)
    with (
        observed(trainer) as seen,
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        trainer.iterate(0)
    calls = iteration_calls(config, 0)
    sampling = sum((chunk.sampling for chunk in calls.chunks), Counter())
    assert sampling + calls.old + calls.reference == seen["forward"]
    assert calls.update == seen["update"]
    assert sum((chunk.decoding for chunk in calls.chunks), Counter()) == seen["decode"]
    shape = shape_of(config.model)
    assert shape is not None
    cost = cost_of(config, 0, shared=config.rollout.share_trunk)
    predicted = iteration_operations(config, cost, shape)
    # the length of the gradient is no operation, and an adapter that is off is not counted
    assert predicted.total == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_calls_are_as_many_as_a_plan_counts(name: str) -> None:
    config = load_config(name)
    samples = config.prompts_per_iteration * config.rollout.group_size
    for iteration, _ in kinds_of_iterations(config):
        calls, cost = iteration_calls(config, iteration), cost_of(config, iteration, shared=True)
        if not config.rollout.share_trunk:
            cost = cost_of(config, iteration, shared=False)
        sampling = sum((chunk.sampling for chunk in calls.chunks), Counter())
        for batches, each in ((sampling, cost.sampling), (calls.update, cost.update), (calls.old, cost.old)):
            assert sum(size * count for size, count in batches.items()) == pytest.approx(each * samples)


def test_one_iteration_of_every_kind_stands_for_the_run() -> None:
    config = load_config("flux-nano", ["--iterations", "10", "--window.interval", "4"])
    assert kinds_of_iterations(config) == [(0, 0.4), (4, 0.4), (8, 0.2)]
