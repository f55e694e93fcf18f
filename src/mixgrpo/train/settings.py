"""From the config to the core's own values: the window, the trajectory's plan, and what both cost. No torch."""

from dataclasses import dataclass, fields

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import (
    AllStepsConfig,
    DecayingWindowConfig,
    FrozenWindowConfig,
    GrpoLossConfig,
    NeighborLossConfig,
    NftLossConfig,
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
            return RandomWindow(num_steps=num_steps, size=window.size, seed=config.seed, reach=window.reach)
        case AllStepsConfig():
            return AllSteps(
                num_steps=num_steps,
                trained_fraction=window.trained_fraction,
                seed=config.seed,
                num_trained=window.num_trained,
                choice=window.choice,
            )


def make_plan(config: Config, window: range) -> TrajectoryPlan:
    """Plan the trajectories of an iteration with that window; with kernel `ode` no step of it is stochastic."""
    rollout = config.rollout
    return plan_trajectory(
        num_steps=rollout.num_steps,
        shift=rollout.shift,
        window=range(0) if rollout.kernel == "ode" else window,
        tail_ratio=rollout.tail_ratio,
        tail_order=rollout.tail_order,
        head_ratio=rollout.head_ratio,
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
    update: float
    """Forward and backward passes of the updates."""
    old: float = 0.0
    """Forward passes for what the sampling policy predicted, where it is not the policy that is updated."""
    reference: float = 0.0
    """Forward passes of the starting model for the divergence to it."""

    @property
    def forwards(self) -> float:
        """All together, in forward passes."""
        return self.sampling + self.old + self.reference + FORWARDS_PER_UPDATE_CALL * self.update


def cost_of(config: Config, iteration: int, *, shared: bool) -> Cost:
    """Return the model calls per sample of `iteration`, with or without sharing what a group has in common.

    What `advantages.threshold` saves depends on the scores and is not in it. With `advantages.extremes` and updates on
    some samples of every group it is an upper bound: a share without any of a group's extremes needs no call for it.
    """
    window, loss = make_window(config), config.loss
    plan = make_plan(config, window.at(iteration))
    shared = shared and config.rollout.noise_spread == 0.0
    update = _update_calls(config, plan, trained_steps(window, iteration), shared=shared)
    lags = isinstance(loss, NftLossConfig) and loss.old_decay_rate > 0.0
    return Cost(
        sampling=plan.nfe(config.rollout.group_size, shared),
        update=update,
        old=update * (1.0 if lags else 1.0 - 1.0 / loss.updates_per_iteration),
        reference=update if loss.kl_weight else 0.0,
    )


def _update_calls(config: Config, plan: TrajectoryPlan, trained: tuple[int, ...], *, shared: bool) -> float:
    """Return the forward and backward calls per sample; `trained` are steps of the schedule."""
    group_size = config.rollout.group_size
    if isinstance(config.loss, NeighborLossConfig):
        return len(trained) * config.loss.anchors / group_size
    kept = 2 * config.advantages.extremes / group_size if config.advantages.extremes else 1.0
    if not isinstance(config.loss, GrpoLossConfig):
        return len(trained) * kept
    calls = plan.update_nfe(samples_per_update(config), shared, tuple(step - plan.offset for step in trained))
    first = int(shared and plan.window.start + plan.offset in trained)
    return calls - (1.0 - kept) * (len(trained) - first)


def mean_cost(config: Config, *, shared: bool) -> Cost:
    """Return the model calls per sample, averaged over the iterations of the run."""
    costs = [cost_of(config, iteration, shared=shared) for iteration in range(config.iterations)]

    def mean(name: str) -> float:
        return sum(getattr(cost, name) for cost in costs) / len(costs)

    return Cost(**{field.name: mean(field.name) for field in fields(Cost)})


def dancegrpo_cost(num_steps: int) -> Cost:
    """Return what DanceGRPO takes at T = num_steps: all steps sampled, floor(0.6 (T - 1)) of them trained, none shared.

    Its old log-probabilities are those of the rollout.
    """
    trained = AllSteps(num_steps=num_steps, trained_fraction=0.6).trained(0)
    return Cost(sampling=float(num_steps), update=float(len(trained)))
