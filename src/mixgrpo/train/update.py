"""The updating half of an iteration (arXiv 2507.21802, algorithm 1), the same for every method.

The objective says what a piece of work is and what its loss; here pieces become gradients, and gradients updates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import OptimConfig
from mixgrpo.rl.advantages import carries_signal
from mixgrpo.train.clock import Clock, StopRequest
from mixgrpo.train.objective import Objective
from mixgrpo.train.pieces import Piece, count_states, split_shares
from mixgrpo.train.policy import Policy
from mixgrpo.train.step import Experience


@dataclass(frozen=True, slots=True)
class Calls:
    """States that went through the model in the updates of one iteration."""

    update: int
    """Forwards and backwards."""
    old: int
    """Forwards, for what the sampling policy predicted there."""
    reference: int
    """Forwards, for what the starting model predicts there."""
    saved: int
    """Forwards and backwards that samples without signal would have cost."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """Figures about the updates of one iteration; means over its samples and trained steps."""

    metrics: dict[str, float]
    steps: dict[int, dict[str, float]]
    """The same by trained step."""
    grad_norm: float
    """Mean over the updates that were taken, before clipping; NaN if none was."""
    skipped: list[bool]
    """For every update in turn that had a sample with signal, whether a loss or gradient that is not finite cost it."""
    calls: Calls


class Updater:
    """Takes the optimiser updates of an iteration."""

    def __init__(
        self, policy: Policy, optimizer: torch.optim.Optimizer, config: Config, objective: Objective, clock: Clock
    ) -> None:
        """Take what all iterations share."""
        self.policy = policy
        self.optimizer = optimizer
        self.config = config
        self.objective = objective
        self.clock = clock
        self.total_updates = config.iterations * config.loss.updates_per_iteration

    def update(
        self,
        experience: Experience,
        advantages: Tensor,
        *,
        first_update: int,
        stop: StopRequest,
        progress: Callable[[int, int], None],
    ) -> UpdateReport:
        """Take all updates of an iteration on `advantages` [P, G]; `first_update` counts those of earlier iterations.

        On the first update the policy has not moved, so what the sampling policy predicted is its own prediction,
        detached, and a ratio is exactly 1. Later updates compare with predictions taken before the first one, in the
        same pieces. A sampling policy with weights of its own (`Policy.sampling`) is asked for every update. So is the
        starting model, all at once, because its weights may have to be fetched.
        """
        shares = split_shares(advantages, self.config.loss)
        settings = self.config.advantages
        worthwhile = carries_signal(advantages, extremes=settings.extremes, threshold=settings.threshold)
        iteration = first_update // self.config.loss.updates_per_iteration
        work = [
            self.objective.pieces(experience.transitions, advantages, share & worthwhile, iteration=iteration)
            for share in shares
        ]
        watch = _Watch(stop, progress, total=self._num_calls(work))
        old, reference = (
            self._old_velocities(work, experience, watch),
            self._starting_velocities(work, experience, watch),
        )
        tally = _Tally()
        norms: list[float | None] = []
        for index, (pieces, share) in enumerate(zip(work, shares, strict=True)):
            scale = _scale(pieces, share, worthwhile)
            self.optimizer.zero_grad(set_to_none=True)
            finite = torch.ones((), dtype=torch.bool, device=advantages.device)
            for number, piece in enumerate(pieces):
                if index == 0:
                    watch.let_stop()
                v = self._velocity(piece, experience)
                before, start = old[index], reference[index]
                loss = self._accumulate(
                    piece, v, before[number] if before else v.detach(), start[number] if start else None, scale, tally
                )
                finite &= torch.isfinite(loss)
                watch.called()
            if pieces:
                norms.append(self._step(first_update + index, bool(finite)))
        taken = [norm for norm in norms if norm is not None]
        metrics, steps = tally.read()
        return UpdateReport(
            metrics=metrics,
            steps=steps,
            grad_norm=sum(taken) / len(taken) if taken else math.nan,
            skipped=[norm is None for norm in norms],
            calls=self._count(experience, work, old, shares, worthwhile),
        )

    def _velocity(self, piece: Piece, experience: Experience) -> Tensor:
        with self.clock.span("model"):
            return self.policy.velocity(piece.x, piece.sigma, experience.conditioning.take(piece.prompt))

    def _num_calls(self, work: Sequence[Sequence[Piece]]) -> int:
        """Return how many model calls the updates and what they are compared with take."""
        others = (self._asks_sampling_policy(index) + bool(self.config.loss.kl_weight) for index in range(len(work)))
        return sum(len(pieces) * (1 + other) for pieces, other in zip(work, others, strict=True))

    def _asks_sampling_policy(self, index: int) -> bool:
        return index > 0 or bool(self.policy.lagging)

    def _old_velocities(
        self, work: Sequence[Sequence[Piece]], experience: Experience, watch: "_Watch"
    ) -> list[list[Tensor] | None]:
        """Return what the sampling policy predicts for each update, None where it is the trained one as it then is."""
        with self.policy.sampling():
            return [
                self._ahead(pieces, experience, watch) if self._asks_sampling_policy(index) else None
                for index, pieces in enumerate(work)
            ]

    def _starting_velocities(
        self, work: Sequence[Sequence[Piece]], experience: Experience, watch: "_Watch"
    ) -> list[list[Tensor] | None]:
        """Return what the starting model predicts for each update, None where nothing asks."""
        if not self.config.loss.kl_weight:
            return [None] * len(work)
        with self.policy.reference():
            return [self._ahead(pieces, experience, watch) for pieces in work]

    @torch.no_grad()
    def _ahead(self, pieces: Sequence[Piece], experience: Experience, watch: "_Watch") -> list[Tensor]:
        velocities = []
        for piece in pieces:
            watch.let_stop()
            velocities.append(self._velocity(piece, experience))
            watch.called()
        return velocities

    def _accumulate(
        self, piece: Piece, v: Tensor, old_v: Tensor, reference: Tensor | None, scale: "_Scale", tally: "_Tally"
    ) -> Tensor:
        """Add a piece's share of the gradient of the update's mean loss; return the piece's loss, detached.

        Samples that were left out count in the mean as the zeros that they would have been.
        """
        loss, metrics = self.objective.loss(piece, v, old_v)
        metrics["loss"] = loss.detach()
        count = len(piece.advantages)
        weighted = loss * (count / scale.total)
        if reference is not None:
            kl = self.objective.divergence(piece, v, reference)[piece.state].mean()
            weighted = weighted + self.config.loss.kl_weight * kl * (count / scale.kept)
            metrics["kl"] = kl.detach()
        tally.add(piece.step, count, metrics)
        with self.clock.span("model"):
            weighted.backward()
        return weighted.detach()

    def _step(self, update: int, finite: bool) -> float | None:
        """Step the optimiser and return the gradient's norm; None, and no step, if something is not finite."""
        parameters = list(self.policy.trained.values())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.optim.max_grad_norm).item()
        if not finite or not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            return None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optim, update, self.total_updates)
        self.optimizer.step()
        self.policy.update_average()
        return norm

    def _count(
        self,
        experience: Experience,
        work: Sequence[Sequence[Piece]],
        old: Sequence[Sequence[Tensor] | None],
        shares: Sequence[Tensor],
        worthwhile: Tensor,
    ) -> Calls:
        states = [sum(len(piece.x) for piece in pieces) for pieces in work]
        dropped = [
            count_states(experience.transitions, share) - count_states(experience.transitions, share & worthwhile)
            for share in shares
        ]
        return Calls(
            update=sum(states),
            old=sum(count for count, velocities in zip(states, old, strict=True) if velocities is not None),
            reference=sum(states) if self.config.loss.kl_weight else 0,
            saved=sum(dropped),
        )


class _Watch:
    """Tells how many of an iteration's model calls are done, and whether somebody asked to stop."""

    def __init__(self, stop: StopRequest, progress: Callable[[int, int], None], *, total: int) -> None:
        self._stop = stop
        self._progress = progress
        self._total = total
        self._done = 0

    def let_stop(self) -> None:
        """Stop here if asked to, while nothing is changed yet, so that the iteration can simply be done again."""
        self._stop.check()

    def called(self) -> None:
        """Count a call."""
        self._done += 1
        self._progress(self._done, self._total)


@dataclass(frozen=True, slots=True)
class _Scale:
    """How many losses an update's mean is taken over."""

    kept: float
    """Those of its pieces."""
    total: float
    """Those and the ones that were left out."""


def _scale(pieces: Sequence[Piece], share: Tensor, worthwhile: Tensor) -> _Scale:
    kept = sum(len(piece.advantages) for piece in pieces)
    samples_kept = max(1, int((share & worthwhile).sum()))
    return _Scale(kept=kept, total=kept * int(share.sum()) / samples_kept)


def learning_rate(optim: OptimConfig, update: int, total_updates: int) -> float:
    """Return the rate of an update, counted from 0: warm-up to `lr`, then the schedule down to its last update."""
    if update < optim.warmup:
        return optim.lr * (update + 1) / (optim.warmup + 1)
    if optim.schedule == "constant":
        return optim.lr
    progress = (update - optim.warmup) / max(1, total_updates - 1 - optim.warmup)
    fall = 1.0 - progress if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return optim.lr * (optim.final_lr_fraction + (1.0 - optim.final_lr_fraction) * fall)


class _Tally:
    """Weighted sums of metrics that stay on the device until they are all asked for at once."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, dict[str, Tensor]]] = []

    def add(self, step: int, count: int, metrics: dict[str, Tensor]) -> None:
        self._rows.append((step, count, metrics))

    def read(self) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Return the means over all rows, and those by step; a name that ends in _max gets its maximum."""
        if not self._rows:
            return {}, {}
        names = tuple(self._rows[0][2])
        # one transfer for everything: on a GPU each one waits for all work that is under way
        table = torch.stack([torch.stack([metrics[name] for name in names]) for _, _, metrics in self._rows]).tolist()
        by_step: dict[int, list[tuple[int, list[float]]]] = {}
        for (step, count, _), values in zip(self._rows, table, strict=True):
            by_step.setdefault(step, []).append((count, values))
        every = [row for rows in by_step.values() for row in rows]
        return _means(names, every), {step: _means(names, by_step[step]) for step in sorted(by_step)}


def _means(names: Sequence[str], rows: Sequence[tuple[int, Sequence[float]]]) -> dict[str, float]:
    total = sum(count for count, _ in rows)
    return {
        name: max(values[column] for _, values in rows)
        if name.endswith("_max")
        else sum(count * values[column] for count, values in rows) / total
        for column, name in enumerate(names)
    }
