"""From the config to the core's own values: the window, the trajectory's plan, and what both cost. No torch."""

from dataclasses import dataclass

from mixgrpo.config.schema import (
    AllStepsConfig,
    Config,
    DecayingWindowConfig,
    FrozenWindowConfig,
    RandomWindowConfig,
    SlidingWindowConfig,
)
from mixgrpo.flow.plan import TrajectoryPlan, plan_trajectory
from mixgrpo.rl.window import (
    AllSteps,
    DecayingWindow,
    FrozenWindow,
    RandomWindow,
    SlidingWindow,
    Window,
    trained_steps,
)


def make_window(config: Config) -> Window:
    """Build the window that `config.window` describes; iterations are asked of it with `.at`."""
    num_steps, window = config.rollout.num_steps, config.window
    match window:
        case SlidingWindowConfig():
            return SlidingWindow(
                num_steps=num_steps,
                size=window.size,
                stride=window.stride,
                interval=window.interval,
                after_last=window.after_last,
            )
        case DecayingWindowConfig():
            return DecayingWindow(
                num_steps=num_steps,
                size=window.size,
                stride=window.stride,
                interval=window.interval,
                decay=window.decay,
                rate=window.rate,
                threshold=window.threshold,
                after_last=window.after_last,
            )
        case FrozenWindowConfig():
            return FrozenWindow(num_steps=num_steps, size=window.size, start=window.start)
        case RandomWindowConfig():
            return RandomWindow(num_steps=num_steps, size=window.size, seed=config.seed)
        case AllStepsConfig():
            return AllSteps(num_steps=num_steps, trained_fraction=window.trained_fraction, seed=config.seed)


def make_plan(config: Config, window: range) -> TrajectoryPlan:
    """Plan the trajectories of an iteration whose stochastic steps are `window`."""
    rollout = config.rollout
    return plan_trajectory(
        num_steps=rollout.num_steps,
        shift=rollout.shift,
        window=window,
        tail_ratio=rollout.tail_ratio,
        tail_order=rollout.tail_order,
    )


def samples_per_update(config: Config) -> int:
    """Return how many samples of one prompt take part in the same update."""
    loss = config.loss
    shares = loss.updates_per_iteration if loss.update_split == "samples" else 1
    return config.rollout.group_size // shares


FORWARDS_PER_UPDATE_CALL = 3.0
"""What a forward and backward pass costs, in forward passes: one forward, and two for the backward."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Model calls per sample of one iteration, or their mean over several."""

    sampling: float
    """Forward passes of the rollout."""
    old_log_prob: float
    """Forward passes for the old log-probabilities of every update but the first of an iteration."""
    update: float
    """Forward and backward passes of the updates."""

    @property
    def forwards(self) -> float:
        """All together, in forward passes."""
        return self.sampling + self.old_log_prob + FORWARDS_PER_UPDATE_CALL * self.update


def cost_of(config: Config, iteration: int, *, shared: bool) -> Cost:
    """Return the model calls per sample of `iteration`, with or without sharing what a group has in common."""
    window = make_window(config)
    plan = make_plan(config, window.at(iteration))
    update = plan.update_nfe(samples_per_update(config), shared, trained_steps(window, iteration))
    return Cost(
        sampling=plan.nfe(config.rollout.group_size, shared),
        old_log_prob=update * (1.0 - 1.0 / config.loss.updates_per_iteration),
        update=update,
    )


def mean_cost(config: Config, *, shared: bool) -> Cost:
    """Return the model calls per sample, averaged over the iterations of the run."""
    costs = [cost_of(config, iteration, shared=shared) for iteration in range(config.iterations)]
    return Cost(
        sampling=sum(cost.sampling for cost in costs) / len(costs),
        old_log_prob=sum(cost.old_log_prob for cost in costs) / len(costs),
        update=sum(cost.update for cost in costs) / len(costs),
    )


def dancegrpo_cost(num_steps: int) -> Cost:
    """Return what DanceGRPO as published takes: every step sampled, floor(0.6 (T - 1)) of them trained, none shared.

    Its old log-probabilities are those of the rollout.
    """
    trained = AllSteps(num_steps=num_steps, trained_fraction=0.6).trained(0)
    return Cost(sampling=float(num_steps), old_log_prob=0.0, update=float(len(trained)))
