"""The plan of a trajectory: its sigmas, which steps are stochastic, and what it costs in model calls. No torch."""

from dataclasses import dataclass

from mixgrpo.flow.sigmas import shift_time, shifted_sigmas, unshift_time


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryPlan:
    """Which sigmas a trajectory visits and how each of its steps is taken.

    Steps before the window are Euler ODE steps, steps of the window are stochastic, steps after it are taken by
    DPM-Solver++ of `tail_order` (order 1 is Euler). An empty window is plain ODE sampling, all of it "after".
    """

    sigmas: tuple[float, ...]
    """One more than there are steps, from 1 down to exactly 0."""
    window: range
    """Indices of the stochastic steps."""
    tail_order: int
    head_order: int = 1
    """Order of the solver before the window: above 1 only if those steps are compressed too."""
    offset: int = 0
    """What is added to a step of the window to get its number in the schedule that has no compressed steps."""

    @property
    def num_steps(self) -> int:
        """Denoising steps, Flash tail included."""
        return len(self.sigmas) - 1

    def nfe(self, group_size: int, shared_noise: bool) -> float:
        """Return the model calls per sample of a rollout.

        With `shared_noise` all samples of a group are one until the noise of the first stochastic step, so everything
        up to and including that step's model call is computed once for the group. Without it: one call a step.
        """
        if not shared_noise:
            return float(self.num_steps)
        shared = self.window.start + 1 if self.window else self.num_steps
        return shared / group_size + (self.num_steps - shared)

    def update_nfe(self, group_size: int, shared_noise: bool, trained: tuple[int, ...] | None = None) -> float:
        """Return the forward-and-backward calls per sample of an update.

        `group_size` counts the samples of a prompt that share one update; `trained` names the steps that are
        updated (default: the whole window).
        """
        steps = tuple(self.window) if trained is None else trained
        shared = int(shared_noise and self.window.start in steps)
        return shared / group_size + len(steps) - shared


def plan_trajectory(
    *,
    num_steps: int,
    shift: float,
    window: range,
    tail_ratio: float = 1.0,
    tail_order: int = 1,
    head_ratio: float = 1.0,
) -> TrajectoryPlan:
    """Plan a trajectory of `num_steps` steps with stochastic steps `window`.

    With `tail_ratio` < 1 (MixGRPO-Flash, arXiv 2507.21802, algorithm 2) the steps after the window are replaced by
    max(1, round(count * tail_ratio)) steps that run from the window's end to exactly 0, evenly spaced in unshifted
    time. With `head_ratio` < 1 the steps before the window are compressed in the same way and taken by the same
    solver (the paper's "dual" compression, which its table 12 warns of); the window then stands earlier in the plan,
    by `offset`, and keeps its sigmas.

    Raises:
        ValueError: if the window is not consecutive steps from 0 to num_steps - 2, or another value is out of range.
    """
    sigmas = shifted_sigmas(num_steps, shift)
    if window and (window.step != 1 or window.start < 0 or window.stop > num_steps - 1):
        raise ValueError(
            f"window {window} must be consecutive steps within 0 to {num_steps - 2}: "
            f"the last step of {num_steps} is never stochastic"
        )
    for name, ratio in (("tail_ratio", tail_ratio), ("head_ratio", head_ratio)):
        if not 0.0 < ratio <= 1.0:
            raise ValueError(f"{name} must be in (0, 1], got {ratio}")
    if tail_order not in (1, 2, 3):
        raise ValueError(f"tail_order must be 1, 2 or 3, got {tail_order}")
    window = window or range(0)  # an empty range somewhere else would say where the tail begins
    head = _compressed(sigmas[: window.start + 1], head_ratio, shift)
    tail = _compressed(sigmas[window.stop :], tail_ratio, shift)
    offset = window.start - (len(head) - 1)
    return TrajectoryPlan(
        sigmas=(*head, *sigmas[window.start + 1 : window.stop], *tail) if window else tail,
        window=range(window.start - offset, window.stop - offset),
        tail_order=tail_order,
        head_order=tail_order if head_ratio < 1.0 else 1,
        offset=offset,
    )


def ode_plan(num_steps: int, shift: float) -> TrajectoryPlan:
    """Plan plain ODE sampling by Euler steps, as models are used."""
    return plan_trajectory(num_steps=num_steps, shift=shift, window=range(0))


def _compressed(sigmas: tuple[float, ...], ratio: float, shift: float) -> tuple[float, ...]:
    """Return the grid from the first to the last of `sigmas` with `ratio` of its steps, evenly spaced in time."""
    count = len(sigmas) - 1
    fewer = max(1, round(count * ratio)) if count else 0
    if fewer == count:
        return sigmas
    start, end = unshift_time(sigmas[0], shift), unshift_time(sigmas[-1], shift)
    inner = (shift_time(start + (end - start) * step / fewer, shift) for step in range(1, fewer))
    return (sigmas[0], *inner, sigmas[-1])
