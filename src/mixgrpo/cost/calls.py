"""Which model calls an iteration makes, and of how many samples each is. No torch."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import GrpoLossConfig
from mixgrpo.flow.plan import TrajectoryPlan
from mixgrpo.rl.window import trained_steps
from mixgrpo.train.settings import cost_of, make_plan, make_window

Batches = Counter[int]
"""Samples of a call -> how many such calls."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompts that are sampled together, while those of the chunk before are being scored."""

    images: int
    sampling: Batches
    decoding: Batches


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of one iteration."""

    prompts: int
    chunks: tuple[Chunk, ...]
    old: Batches
    reference: Batches
    update: Batches
    updates: int
    """Optimiser steps."""


def iteration_calls(config: Config, iteration: int) -> Calls:
    """Return the calls of `iteration`, with as many samples in all as `cost_of` counts."""
    shares = config.rollout.share_trunk and config.rollout.noise_spread == 0.0
    cost = cost_of(config, iteration, shared=shares)
    window = make_window(config)
    plan, trained = make_plan(config, window.at(iteration)), trained_steps(window, iteration)
    group_size, count = config.rollout.group_size, config.prompts_per_iteration
    at_once = max(1, config.rollout.micro_batch // group_size)
    chunks = tuple(_chunk(config, plan, prompts, shares=shares) for prompts in _parts(count, at_once))
    update = _update_batches(config, plan, trained, states=cost.update * count * group_size, shares=shares)
    return Calls(
        prompts=count,
        chunks=chunks,
        old=_scaled(update, cost.old / cost.update),
        reference=_scaled(update, cost.reference / cost.update),
        update=update,
        updates=config.loss.updates_per_iteration,
    )


def kinds_of_iterations(config: Config) -> list[tuple[int, float]]:
    """Return one iteration of every kind, with the share of the run that is like it.

    Iterations with the same window and as many trained steps make the same calls.
    """
    window = make_window(config)
    kinds: dict[tuple[range, int, bool], list[int]] = {}
    for iteration in range(config.iterations):
        steps, trained = window.at(iteration), trained_steps(window, iteration)
        kinds.setdefault((steps, len(trained), steps.start in trained), []).append(iteration)
    return [(same[0], len(same) / config.iterations) for same in kinds.values()]


def _chunk(config: Config, plan: TrajectoryPlan, prompts: int, *, shares: bool) -> Chunk:
    micro_batch = config.rollout.micro_batch
    samples = prompts * config.rollout.group_size
    together = (plan.window.start + 1 if plan.window else plan.num_steps) if shares else 0
    sampling = Batches()
    for step in range(plan.num_steps):
        sampling += _split(prompts if step < together else samples, micro_batch)
    return Chunk(images=samples, sampling=sampling, decoding=_split(samples, micro_batch))


def _update_batches(
    config: Config, plan: TrajectoryPlan, trained: tuple[int, ...], *, states: float, shares: bool
) -> Batches:
    """Return the calls of all updates: each takes its share of every trained step, in micro-batches.

    Where a group's samples are still one (GRPO, the window's first step), the step has a state per prompt.
    """
    loss = config.loss
    common = plan.window.start + plan.offset if shares and isinstance(loss, GrpoLossConfig) and plan.window else None
    alone = config.prompts_per_iteration
    if loss.update_split == "prompts":
        alone //= loss.updates_per_iteration
    in_common = [alone] if common in trained else []
    other_steps = len(trained) - len(in_common)
    batches = Batches()
    if other_steps:
        per_step = (states / loss.updates_per_iteration - sum(in_common)) / other_steps
        batches += _repeated(_split(round(per_step), loss.micro_batch), other_steps * loss.updates_per_iteration)
    for size in in_common:
        batches += _repeated(_split(size, loss.micro_batch), loss.updates_per_iteration)
    return batches


def _parts(count: int, size: int) -> Iterator[int]:
    for start in range(0, count, size):
        yield min(size, count - start)


def _split(count: int, size: int) -> Batches:
    return Batches(_parts(count, size))


def _repeated(batches: Batches, times: float) -> Batches:
    return Batches({size: round(count * times) for size, count in batches.items()})


def _scaled(batches: Batches, share: float) -> Batches:
    """Return the calls of a share of the updates, such as all but the first."""
    return _repeated(batches, share) if share else Batches()
