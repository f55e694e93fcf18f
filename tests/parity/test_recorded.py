"""What a rollout keeps for an update: steps of deterministic trajectories, compressed heads, the forward process."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan, ode_plan, plan_trajectory
from mixgrpo.flow.rollout import Trajectory, forward_transitions, rollout
from parity import reference
from parity.reference import Array
from parity.test_rollout import ETA, GROUP, KERNELS, LATENT, NOISE, NUM_STEPS, PROMPTS, CountingNetwork, velocity_of

SPREADS = [0.0, 0.3, 1.0]


def draw(
    plan: TrajectoryPlan, *, spread: float, network: CountingNetwork | None = None, **settings: object
) -> Trajectory:
    return rollout(
        network or CountingNetwork(PROMPTS),
        plan,
        NOISE,
        kernel=KERNELS["flow_sde"] if plan.window else None,
        prompts=PROMPTS,
        group_size=GROUP,
        micro_batch=5,
        noise_spread=spread,
        **settings,  # pyright: ignore[reportArgumentType]
    )


def start_by_hand(prompt: int, member: int, spread: float) -> Array:
    group, own = (NOISE.initial(prompt, who).double().numpy() for who in (None, member))
    return np.sqrt(1 - spread**2) * group + spread * own


def walk(
    x: Array,
    prompt: int,
    sigmas: Array,
    orders: list[int | None],
    noise: dict[int, Array],
    variant: reference.Variant = "midpoint",
) -> list[tuple[Array, Array]]:
    """(x, x_next) of every step; an order of None is a stochastic step, 1 is Euler."""
    predictions: list[tuple[float, Array]] = []
    steps = []
    for i, order in enumerate(orders):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        v = velocity_of(x, sigma, prompt)
        predictions.append((sigma, x - sigma * v))
        if order is None:
            keep, std = reference.flow_sde(sigma, sigma_next, ETA)
            x_next = reference.step_mean(x, v, sigma, sigma_next, keep) + std * noise[i]
        elif order == 1:
            x_next = x + (sigma_next - sigma) * v
        else:
            x_next = reference.multistep(x, predictions, sigma, sigma_next, order=order, variant=variant)
        steps.append((x, x_next))
        x = x_next
    return steps


def broadcast(x: Tensor) -> Tensor:
    return x.expand(len(PROMPTS), GROUP, *LATENT)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("spread", SPREADS)
def test_recorded_steps_of_deterministic_trajectories_equal_a_loop_by_hand(order: int, spread: float) -> None:
    kept = (0, 2, 5, NUM_STEPS - 1)
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(0), tail_order=order)
    network = CountingNetwork(PROMPTS)
    trajectory = draw(plan, spread=spread, record=kept, network=network)
    assert sorted(trajectory.transitions) == list(kept)
    sigmas = reference.shifted_schedule(NUM_STEPS, 3.0)
    for row, prompt in enumerate(PROMPTS):
        for member in range(GROUP):
            steps = walk(start_by_hand(prompt, member, spread), prompt, sigmas, [order] * NUM_STEPS, {})
            np.testing.assert_allclose(trajectory.x0[row, member], steps[-1][1], rtol=0, atol=1e-4)
            for step in kept:
                stored = trajectory.transitions[step]
                np.testing.assert_allclose(broadcast(stored.x)[row, member], steps[step][0], rtol=0, atol=1e-4)
                np.testing.assert_allclose(broadcast(stored.x_next)[row, member], steps[step][1], rtol=0, atol=1e-4)
                assert (stored.sigma, stored.sigma_next) == pytest.approx((sigmas[step], sigmas[step + 1]))
    each = 1 if spread == 0.0 else GROUP
    assert sum(network.batches) == trajectory.calls == len(PROMPTS) * each * NUM_STEPS
    assert plan.nfe(GROUP, spread == 0.0) * len(PROMPTS) * GROUP == pytest.approx(trajectory.calls)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("window", "head_ratio", "tail_ratio"),
    [(range(6, 8), 0.5, 0.4), (range(3, 6), 0.7, 1.0), (range(4, 7), 0.1, 0.5), (range(0, 3), 0.4, 0.4)],
)
def test_compressed_heads_are_taken_by_the_solver_of_the_tail(
    window: range, head_ratio: float, tail_ratio: float, order: int, spread: float
) -> None:
    """Its history goes on through the stochastic steps; the window's noise is that of its place in the plan."""
    plan = plan_trajectory(
        num_steps=NUM_STEPS, shift=3.0, window=window, head_ratio=head_ratio, tail_ratio=tail_ratio, tail_order=order
    )
    trajectory = draw(plan, spread=spread)
    assert sorted(trajectory.transitions) == list(plan.window)
    orders: list[int | None] = [order] * plan.num_steps
    for step in plan.window:
        orders[step] = None
    grid = reference.shifted_schedule(NUM_STEPS, 3.0)
    for row, prompt in enumerate(PROMPTS):
        for member in range(GROUP):
            noise = {step: NOISE.step(prompt, member, step).double().numpy() for step in plan.window}
            steps = walk(start_by_hand(prompt, member, spread), prompt, np.array(plan.sigmas), orders, noise)
            np.testing.assert_allclose(trajectory.x0[row, member], steps[-1][1], rtol=0, atol=2e-4)
            for step in plan.window:
                stored = trajectory.transitions[step]
                np.testing.assert_allclose(broadcast(stored.x)[row, member], steps[step][0], rtol=0, atol=1e-4)
                np.testing.assert_allclose(stored.x_next[row, member], steps[step][1], rtol=0, atol=1e-4)
                here = step + plan.offset
                assert (stored.sigma, stored.sigma_next) == pytest.approx((grid[here], grid[here + 1]))


@pytest.mark.parametrize(("order", "variant"), [(2, "midpoint"), (2, "heun"), (3, "heun"), (3, "corrected")])
def test_formula_of_the_solver_is_the_one_asked_for(order: int, variant: reference.Variant) -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(0), tail_order=order)
    x0 = draw(plan, spread=1.0, tail_variant=variant).x0
    sigmas = reference.shifted_schedule(NUM_STEPS, 3.0)
    found = []
    for formula in ("midpoint", "heun", *(["corrected"] if order == 3 else [])):
        by_hand = walk(start_by_hand(7, 0, 1.0), 7, sigmas, [order] * NUM_STEPS, {}, formula)[-1][1]
        found += [formula] if np.abs(x0[0, 0].numpy() - by_hand).max() < 1e-4 else []
    assert found == ([variant] if order == 2 or variant == "corrected" else ["midpoint", "heun"])


def test_head_of_a_plan_without_head_compression_is_euler_whatever_the_tail() -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(5, 7), tail_order=3, tail_ratio=0.5)
    euler = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(5, 7))
    first, other = (draw(p, spread=0.0).transitions[5].x for p in (plan, euler))
    assert torch.equal(first, other)


@pytest.mark.parametrize("window", [range(0), range(3, 6)])
def test_spread_of_one_and_of_zero_are_independent_noises_and_one_noise(window: range) -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=window)
    one = draw(plan, spread=0.0, record=(0,)).transitions[0].x
    assert one.shape[1] == 1
    assert torch.equal(one[:, 0], torch.stack([NOISE.initial(prompt, None) for prompt in PROMPTS]))
    whole = draw(plan, spread=1.0, record=(0,)).transitions[0].x
    for row, prompt in enumerate(PROMPTS):
        for member in range(GROUP):
            assert torch.equal(whole[row, member], NOISE.initial(prompt, member))
    for share_trunk in (True, False):
        torch.testing.assert_close(
            draw(plan, spread=0.3, share_trunk=share_trunk).x0, draw(plan, spread=0.3).x0, rtol=0, atol=0
        )


@pytest.mark.parametrize("record", [(), (4,), (3, 8)])
@pytest.mark.parametrize("share_trunk", [True, False])
def test_a_trajectory_keeps_the_steps_it_was_asked_for_and_no_others(
    record: tuple[int, ...], share_trunk: bool
) -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(3, 6))
    asked = draw(plan, spread=0.0, record=record, share_trunk=share_trunk)
    default = draw(plan, spread=0.0, share_trunk=share_trunk)
    assert sorted(asked.transitions) == sorted(record)
    assert sorted(default.transitions) == [3, 4, 5]
    assert torch.equal(asked.x0, default.x0)
    for step in set(record) & {3, 4, 5}:
        assert torch.equal(asked.transitions[step].x, default.transitions[step].x)
        assert torch.equal(asked.transitions[step].x_next, default.transitions[step].x_next)


def test_forward_transitions_are_finished_samples_with_their_own_noise_added() -> None:
    x0 = draw(ode_plan(NUM_STEPS, 3.0), spread=1.0).x0
    sigmas = reference.shifted_schedule(NUM_STEPS, 3.0).tolist()
    found = forward_transitions(x0, NOISE, sigmas, prompts=PROMPTS, steps=(7, 0, 3))
    assert sorted(found) == [0, 3, 7]
    for step, transition in found.items():
        assert (transition.sigma, transition.sigma_next) == (sigmas[step], 0.0)
        assert torch.equal(transition.x_next, x0)
        for row, prompt in enumerate(PROMPTS):
            for member in range(GROUP):
                clean = x0[row, member].double().numpy()
                eps = NOISE.forward(prompt, member, step).double().numpy()
                noisy = (1 - sigmas[step]) * clean + sigmas[step] * eps
                np.testing.assert_allclose(transition.x[row, member], noisy, rtol=0, atol=1e-6)
                asked = (transition.x[row, member].double().numpy() - clean) / sigmas[step]
                np.testing.assert_allclose(asked, eps - clean, rtol=0, atol=1e-5)


def test_noise_of_the_forward_process_depends_on_the_prompts_key_and_not_on_the_batch() -> None:
    x0 = torch.randn(3, GROUP, *LATENT)
    sigmas = reference.shifted_schedule(NUM_STEPS, 3.0).tolist()
    add = partial(forward_transitions, sigmas=sigmas, steps=(2,))
    whole = add(x0, NOISE, prompts=PROMPTS)[2].x
    alone = add(x0[2:, :2], NOISE, prompts=PROMPTS[2:])[2].x
    assert torch.equal(whole[2:, :2], alone)
    later = add(x0, Noise(NOISE.seed, NOISE.iteration + 1, LATENT), prompts=PROMPTS)[2].x
    assert not torch.equal(whole, later)
