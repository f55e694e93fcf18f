"""From the config to windows and plans: every setting arrives where it belongs."""

from typing import Any

import pytest

from mixgrpo.config.load import load_config
from mixgrpo.flow.plan import TrajectoryPlan, plan_trajectory
from mixgrpo.rl.window import AllSteps, DecayingWindow, FrozenWindow, RandomWindow, SlidingWindow, Window
from mixgrpo.train.settings import make_plan, make_window

STEPS = ("--rollout.num-steps", "12", "--seed", "5")


def flags(**values: Any) -> list[str]:
    return [part for name, value in values.items() for part in (f"--window.{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize(
    ("kind", "values", "window"),
    [
        (
            "sliding",
            {"size": 3, "stride": 2, "interval": 4, "after_last": "stay"},
            SlidingWindow(num_steps=12, size=3, stride=2, interval=4, after_last="stay"),
        ),
        (
            "decaying",
            {
                "size": 3,
                "stride": 2,
                "interval": 4,
                "decay": "exponential",
                "rate": 0.3,
                "threshold": 2,
                "after_last": "stay",
            },
            DecayingWindow(num_steps=12, size=3, stride=2, interval=4, rate=0.3, threshold=2, after_last="stay"),
        ),
        (
            "decaying",
            {"size": 3, "interval": 4, "decay": "linear"},
            DecayingWindow(num_steps=12, size=3, interval=4, decay="linear"),
        ),
        ("frozen", {"size": 3, "start": 4}, FrozenWindow(num_steps=12, size=3, start=4)),
        ("random", {"size": 3, "reach": 0.4}, RandomWindow(num_steps=12, size=3, seed=5, reach=0.4)),
        ("all", {"trained_fraction": 0.4}, AllSteps(num_steps=12, trained_fraction=0.4, seed=5)),
        ("all", {"num_trained": 3, "choice": "first"}, AllSteps(num_steps=12, num_trained=3, seed=5, choice="first")),
    ],
)
def test_a_window_has_the_values_of_its_section(kind: str, values: dict[str, Any], window: Window) -> None:
    assert make_window(load_config("flux-nano", [*STEPS, "--window.type", kind, *flags(**values)])) == window


def plan_of(*args: str, window: range, preset: str = "flux-nano") -> TrajectoryPlan:
    return make_plan(load_config(preset, [*STEPS, "--rollout.shift", "2", *args]), window)


def test_a_plan_has_the_values_of_the_rollout() -> None:
    flash = ("--rollout.tail-ratio", "0.4", "--rollout.tail-order", "3", "--rollout.head-ratio", "0.5")
    assert plan_of(*flash, window=range(6, 8)) == plan_trajectory(
        num_steps=12, shift=2.0, window=range(6, 8), tail_ratio=0.4, tail_order=3, head_ratio=0.5
    )
    assert plan_of(window=range(6, 8)) == plan_trajectory(num_steps=12, shift=2.0, window=range(6, 8))


def test_without_a_kernel_no_step_of_the_window_is_stochastic() -> None:
    plain = plan_trajectory(num_steps=12, shift=2.0, window=range(0), tail_order=2)
    assert plan_of(preset="flux-nano-nft", window=range(6, 8)) == plain
