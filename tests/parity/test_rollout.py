"""The sampling loop against loops written by hand, and the shared trunk against one trajectory per sample."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan, plan_trajectory
from mixgrpo.flow.rollout import Kernel, Trajectory, rollout
from mixgrpo.flow.steps import cps_kernel, dance_sde_kernel, flow_sde_kernel, gddim_kernel, log_prob
from parity import reference
from parity.reference import Array

LATENT = (3, 2)
PROMPTS = (7, 2, 40)
GROUP = 4
NUM_STEPS = 10
ETA = 0.6
NOISE = Noise(seed=11, iteration=5, latent_shape=LATENT)
KERNELS: dict[str, Kernel] = {
    "flow_sde": partial(flow_sde_kernel, eta=ETA),
    "dance_sde": partial(dance_sde_kernel, eta=ETA),
    "cps": partial(cps_kernel, eta=ETA),
    "gddim": partial(gddim_kernel, eta=ETA),
}
WINDOWS = [range(3), range(2, 5), range(NUM_STEPS - 3, NUM_STEPS - 1), range(NUM_STEPS - 1), range(0)]

_WEIGHTS = np.random.default_rng(0).standard_normal((2, 6, 6)) * 0.6
_BIAS = np.random.default_rng(1).standard_normal((64, 6))


def velocity_of(x: Array, sigma: float, prompt: int) -> Array:
    """A two-layer network of one sample x [3, 2] in float64, different for every prompt."""
    hidden = np.tanh(_WEIGHTS[0] @ x.ravel() + sigma * _BIAS[prompt])
    return (_WEIGHTS[1] @ hidden + 0.5 * _BIAS[prompt]).reshape(x.shape)


class CountingNetwork:
    """The same network in torch float32, and how many samples it was given in each call."""

    def __init__(self, prompts: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        self.weights = torch.from_numpy(_WEIGHTS).float()
        self.bias = torch.from_numpy(_BIAS).float()[list(prompts)]
        self.dtype = dtype
        self.batches: list[int] = []

    def __call__(self, x: Tensor, sigma: float, rows: Tensor) -> Tensor:
        self.batches.append(len(x))
        bias = self.bias[rows]
        hidden = torch.tanh(x.flatten(1) @ self.weights[0].T + sigma * bias)
        return (hidden @ self.weights[1].T + 0.5 * bias).reshape(x.shape).to(self.dtype)


def draw(
    plan: TrajectoryPlan,
    *,
    kernel: str = "flow_sde",
    prompts: tuple[int, ...] = PROMPTS,
    group_size: int = GROUP,
    shared_noise: bool = True,
    share_trunk: bool = True,
    micro_batch: int = 5,
    network: CountingNetwork | None = None,
) -> Trajectory:
    return rollout(
        network or CountingNetwork(prompts),
        plan,
        NOISE,
        kernel=KERNELS[kernel],
        prompts=prompts,
        group_size=group_size,
        noise_spread=0.0 if shared_noise else 1.0,
        share_trunk=share_trunk,
        micro_batch=micro_batch,
    )


def by_hand(
    sigmas: Array,
    window: range,
    prompt: int,
    member: int,
    *,
    kernel: str = "flow_sde",
    shared_noise: bool = True,
    tail_order: int = 1,
) -> tuple[Array, dict[int, tuple[Array, Array]]]:
    """One sample of the rollout, alone, in float64 numpy."""
    return reference.sample(
        partial(velocity_of, prompt=prompt),
        NOISE.initial(prompt, None if shared_noise else member).double().numpy(),
        sigmas.tolist(),
        {step: NOISE.step(prompt, member, step).double().numpy() for step in window},
        kernel=kernel,
        eta=ETA,
        tail_order=tail_order,
    )


def broadcast(x: Tensor) -> Tensor:
    return x.expand(len(PROMPTS), GROUP, *LATENT)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("shared_noise", "share_trunk"), [(True, True), (True, False), (False, False)])
def test_rollout_equals_single_samples_computed_by_hand(
    window: range, kernel: str, shared_noise: bool, share_trunk: bool
) -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=window)
    sigmas = reference.shifted_schedule(NUM_STEPS, 3.0)
    trajectory = draw(plan, kernel=kernel, shared_noise=shared_noise, share_trunk=share_trunk)
    assert trajectory.x0.shape == (len(PROMPTS), GROUP, *LATENT)
    assert sorted(trajectory.transitions) == list(window)
    for row, prompt in enumerate(PROMPTS):
        for member in range(GROUP):
            x0, steps = by_hand(sigmas, window, prompt, member, kernel=kernel, shared_noise=shared_noise)
            np.testing.assert_allclose(trajectory.x0[row, member], x0, rtol=0, atol=5e-5)
            for step, (x, x_next) in steps.items():
                stored = trajectory.transitions[step]
                np.testing.assert_allclose(broadcast(stored.x)[row, member], x, rtol=0, atol=5e-5)
                np.testing.assert_allclose(stored.x_next[row, member], x_next, rtol=0, atol=5e-5)
                assert (stored.sigma, stored.sigma_next) == pytest.approx((sigmas[step], sigmas[step + 1]))


@pytest.mark.parametrize("tail_order", [1, 2, 3])
@pytest.mark.parametrize(
    ("window", "tail_ratio", "tail_steps"),
    [
        (range(3), 0.4, 3),
        (range(2, 5), 0.6, 3),
        (range(4, 7), 0.1, 1),
        (range(2, 4), 1.0, 6),
        (range(3, 4), 0.5, 3),  # order 3 then needs a prediction from before the window
        (range(0), 0.5, 5),
    ],
)
@pytest.mark.parametrize("share_trunk", [True, False])
def test_flash_tail_equals_a_loop_by_hand(
    window: range, tail_ratio: float, tail_steps: int, tail_order: int, share_trunk: bool
) -> None:
    """The solver of the tail remembers the predictions of the steps before it, stochastic or not."""
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=window, tail_ratio=tail_ratio, tail_order=tail_order)
    sigmas = reference.flash_schedule(NUM_STEPS, 3.0, window.stop, tail_steps)
    np.testing.assert_allclose(plan.sigmas, sigmas, rtol=0, atol=1e-14)
    trajectory = draw(plan, share_trunk=share_trunk)
    for row, prompt in enumerate(PROMPTS):
        for member in range(GROUP):
            x0, _ = by_hand(sigmas, window, prompt, member, tail_order=tail_order)
            np.testing.assert_allclose(trajectory.x0[row, member], x0, rtol=0, atol=1e-4)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("tail_ratio", [1.0, 0.4])
@pytest.mark.parametrize("kernel", KERNELS)
def test_shared_trunk_changes_the_number_of_model_calls_and_nothing_else(
    window: range, tail_ratio: float, kernel: str
) -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=window, tail_ratio=tail_ratio, tail_order=2)
    shared_network, full_network = CountingNetwork(PROMPTS), CountingNetwork(PROMPTS)
    shared = draw(plan, kernel=kernel, network=shared_network)
    full = draw(plan, kernel=kernel, share_trunk=False, network=full_network)

    torch.testing.assert_close(shared.x0, full.x0, rtol=0, atol=1e-4)
    for step in window:
        one, other = shared.transitions[step], full.transitions[step]
        assert one.x.shape[1] == (1 if step == window.start else GROUP)
        torch.testing.assert_close(broadcast(one.x), other.x, rtol=0, atol=1e-4)
        torch.testing.assert_close(one.x_next, other.x_next, rtol=0, atol=1e-4)

    samples = len(PROMPTS) * GROUP
    assert sum(shared_network.batches) == shared.calls == pytest.approx(plan.nfe(GROUP, True) * samples, rel=1e-12)
    assert sum(full_network.batches) == full.calls == plan.nfe(GROUP, False) * samples


def test_samples_with_noise_of_their_own_cost_one_call_a_step() -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(3, 5))
    network = CountingNetwork(PROMPTS)
    trajectory = draw(plan, shared_noise=False, share_trunk=False, network=network)
    assert sum(network.batches) == trajectory.calls == NUM_STEPS * len(PROMPTS) * GROUP


@pytest.mark.parametrize("shared_noise", [True, False])
def test_micro_batch_bounds_a_call_and_changes_no_result(shared_noise: bool) -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(2, 5), tail_ratio=0.5, tail_order=2)
    draw_with = partial(draw, plan, shared_noise=shared_noise, share_trunk=shared_noise)
    whole = draw_with(micro_batch=1000)
    for micro_batch in (1, 5, len(PROMPTS) * GROUP):
        network = CountingNetwork(PROMPTS)
        cut = draw_with(micro_batch=micro_batch, network=network)
        assert max(network.batches) <= micro_batch
        assert cut.calls == whole.calls
        torch.testing.assert_close(cut.x0, whole.x0, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shared_noise", [True, False])
def test_a_prompt_gets_the_same_samples_in_any_batch_and_any_larger_group(shared_noise: bool) -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(2, 5))
    together = draw(plan, shared_noise=shared_noise, share_trunk=shared_noise)
    alone = draw(plan, prompts=(40,), group_size=2, shared_noise=shared_noise, share_trunk=shared_noise)
    torch.testing.assert_close(together.x0[2:, :2], alone.x0, rtol=0, atol=1e-5)


def test_group_members_start_together_and_part_at_the_first_stochastic_step() -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(3, 5))
    first = draw(plan, share_trunk=False).transitions[3]
    torch.testing.assert_close(first.x, first.x[:, :1].expand_as(first.x), rtol=0, atol=1e-5)
    assert not any(torch.allclose(first.x_next[:, i], first.x_next[:, j]) for i in range(GROUP) for j in range(i))


def test_samples_with_noise_of_their_own_start_apart() -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(0))
    x0 = draw(plan, shared_noise=False, share_trunk=False).x0
    assert not any(torch.allclose(x0[:, i], x0[:, j]) for i in range(GROUP) for j in range(i))


def test_an_empty_window_is_plain_euler_and_needs_no_kernel() -> None:
    plan = plan_trajectory(num_steps=6, shift=1.0, window=range(0))
    network = CountingNetwork((7,))
    trajectory = rollout(network, plan, NOISE, kernel=None, prompts=(7,), group_size=2, micro_batch=8)
    x = NOISE.initial(7, None).double().numpy()
    for i in range(6):
        x = x - velocity_of(x, 1 - i / 6, 7) / 6
    np.testing.assert_allclose(trajectory.x0[0, 0], x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(trajectory.x0[0, 1], x, rtol=0, atol=1e-5)
    assert trajectory.transitions == {}


@pytest.mark.parametrize("kernel", KERNELS)
def test_log_prob_of_a_stored_transition_is_the_density_of_its_noise(kernel: str) -> None:
    """x_next = mean + std z, so the replayed log-density must be that of z, minus log std."""
    window = range(1, 5)
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=window)
    network = CountingNetwork(PROMPTS)
    trajectory = draw(plan, kernel=kernel)
    rows = torch.arange(len(PROMPTS)).repeat_interleave(GROUP)
    for step in window:
        stored = trajectory.transitions[step]
        x = broadcast(stored.x).flatten(0, 1)
        replayed = KERNELS[kernel](x, network(x, stored.sigma, rows), sigma=stored.sigma, sigma_next=stored.sigma_next)
        z = np.stack([NOISE.step(p, member, step).double().numpy() for p in PROMPTS for member in range(GROUP)])
        _, std = reference.COEFFICIENTS[kernel](stored.sigma, stored.sigma_next, ETA)
        expected = reference.gaussian_log_density(std * z, np.zeros_like(z), std)
        np.testing.assert_allclose(log_prob(replayed, stored.x_next.flatten(0, 1)), expected, rtol=0, atol=2e-5)


def test_every_stochastic_step_starts_where_the_one_before_it_ended() -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(2, 6))
    transitions = draw(plan).transitions
    for step in range(3, 6):
        assert torch.equal(transitions[step].x, transitions[step - 1].x_next)
        assert transitions[step].sigma == transitions[step - 1].sigma_next


def test_a_bfloat16_model_leaves_latents_and_transitions_in_float32() -> None:
    plan = plan_trajectory(num_steps=NUM_STEPS, shift=3.0, window=range(2, 4), tail_ratio=0.5, tail_order=2)
    trajectory = draw(plan, network=CountingNetwork(PROMPTS, torch.bfloat16))
    stored = trajectory.transitions[2]
    assert {trajectory.x0.dtype, stored.x.dtype, stored.x_next.dtype} == {torch.float32}
    assert not torch.equal(stored.x_next, stored.x_next.bfloat16().float())


def test_rollout_records_no_gradients() -> None:
    plan = plan_trajectory(num_steps=4, shift=3.0, window=range(1, 2))
    network = CountingNetwork(PROMPTS)
    network.weights.requires_grad_()
    trajectory = draw(plan, network=network)
    assert not trajectory.x0.requires_grad
    assert not trajectory.transitions[1].x_next.requires_grad


def test_a_plan_with_stochastic_steps_needs_a_kernel() -> None:
    plan = plan_trajectory(num_steps=4, shift=3.0, window=range(1, 2))
    with pytest.raises(ValueError, match="kernel"):
        rollout(CountingNetwork((7,)), plan, NOISE, kernel=None, prompts=(7,), group_size=2, micro_batch=8)
