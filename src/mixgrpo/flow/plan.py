"""The plan of a trajectory: its sigmas, which steps are stochastic, and what it costs in model calls. No torch."""

from dataclasses import dataclass

from mixgrpo.flow.sigmas import shifted_sigmas, sigmas_from


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryPlan:
    """Which sigmas a trajectory visits and how each of its steps is taken.

    Steps before the window are Euler ODE steps, steps of the window are stochastic, steps after it are taken by
    DPM-Solver++ of `tail_order` (order 1 is Euler). An empty window is plain ODE sampling.
    """

    sigmas: tuple[float, ...]
    """One more than there are steps, from 1 down to exactly 0."""
    window: range
    """Indices of the stochastic steps."""
    tail_order: int

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
    *, num_steps: int, shift: float, window: range, tail_ratio: float = 1.0, tail_order: int = 1
) -> TrajectoryPlan:
    """Plan a trajectory of `num_steps` steps with stochastic steps `window`.

    With `tail_ratio` < 1 (MixGRPO-Flash, arXiv 2507.21802, algorithm 2) the steps after the window are replaced by
    max(1, round(count * tail_ratio)) steps that run from the window's end to exactly 0, evenly spaced in unshifted
    time.

    Raises:
        ValueError: if the window is not consecutive steps from 0 to num_steps - 2, or another value is out of range.
    """
    sigmas = shifted_sigmas(num_steps, shift)
    if window and (window.step != 1 or window.start < 0 or window.stop > num_steps - 1):
        raise ValueError(
            f"window {window} must be consecutive steps within 0 to {num_steps - 2}: "
            f"the last step of {num_steps} is never stochastic"
        )
    if not 0.0 < tail_ratio <= 1.0:
        raise ValueError(f"tail_ratio must be in (0, 1], got {tail_ratio}")
    if tail_order not in (1, 2, 3):
        raise ValueError(f"tail_order must be 1, 2 or 3, got {tail_order}")
    window = window or range(0)  # an empty range somewhere else would say where the tail begins
    first = window.stop
    num_tail = max(1, round((num_steps - first) * tail_ratio))
    if num_tail < num_steps - first:
        sigmas = (*sigmas[:first], *sigmas_from(sigmas[first], num_tail, shift))
    return TrajectoryPlan(sigmas=sigmas, window=window, tail_order=tail_order)
