"""The two halves of an iteration: sample and score, then update (arXiv 2507.21802, algorithm 1).

Shapes: P prompts, G samples per prompt. In an update a prompt's samples may be shared out, so S <= G of them count.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixgrpo.config.schema import Config, LossConfig, OptimConfig
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan
from mixgrpo.flow.rollout import Kernel, Transition, rollout
from mixgrpo.flow.steps import Gaussian, log_prob
from mixgrpo.models import Conditioning
from mixgrpo.rewards.scorer import Scorer, ScoreTable
from mixgrpo.rl.loss import gaussian_kl, grpo_loss
from mixgrpo.train.clock import Clock, StopRequest
from mixgrpo.train.policy import Policy
from mixgrpo.train.scores import join_tables


@dataclass(frozen=True, slots=True)
class Experience:
    """What a rollout leaves for the update."""

    conditioning: Conditioning
    """Of the P prompts."""
    transitions: dict[int, Transition]
    """The steps that will be trained."""
    scores: ScoreTable
    """Of the P * G samples, those of a prompt next to each other."""
    calls: int
    """Samples that went through the model."""


def sample_and_score(
    policy: Policy,
    scorer: Scorer,
    prompts: Sequence[str],
    config: Config,
    *,
    plan: TrajectoryPlan,
    noise: Noise,
    kernel: Kernel,
    trained: Sequence[int],
    clock: Clock,
    stop: StopRequest,
    progress: Callable[[int, int], None],
) -> Experience:
    """Draw a group for every prompt; while one chunk of prompts is being scored, draw the next."""
    group_size, micro_batch = config.rollout.group_size, config.rollout.micro_batch
    with clock.span("encode"):
        conditioning = policy.model.encode(prompts)
    chunk_size = max(1, micro_batch // group_size)
    chunks = [range(start, min(start + chunk_size, len(prompts))) for start in range(0, len(prompts), chunk_size)]
    trajectories, pending = [], []
    for chunk in chunks:
        stop.check()
        chunk_conditioning = conditioning.take(torch.tensor(chunk, device=policy.model.device))

        def velocity(x: Tensor, sigma: float, row: Tensor, conditioning=chunk_conditioning) -> Tensor:
            with clock.span("model"):
                return policy.velocity(x, sigma, conditioning.take(row))

        trajectory = rollout(
            velocity,
            plan,
            noise,
            kernel=kernel,
            prompts=chunk,
            group_size=group_size,
            micro_batch=micro_batch,
            shared_noise=config.rollout.shared_noise,
            share_trunk=config.rollout.share_trunk,
            tail_variant=config.rollout.tail_variant,
            device=policy.model.device,
        )
        with clock.span("decode"):
            images = torch.cat([policy.model.decode(x) for x in trajectory.x0.flatten(0, 1).split(micro_batch)])
        pending.append(scorer.submit(images, [prompts[row] for row in chunk for _ in range(group_size)]))
        trajectories.append(trajectory)
        progress(chunk.stop, len(prompts))
    with clock.span("score_wait"):
        scores = join_tables([part.result() for part in pending])
    transitions = {
        step: Transition(
            x=torch.cat([trajectory.transitions[step].x for trajectory in trajectories]),
            x_next=torch.cat([trajectory.transitions[step].x_next for trajectory in trajectories]),
            sigma=plan.sigmas[step],
            sigma_next=plan.sigmas[step + 1],
        )
        for step in trained
    }
    return Experience(conditioning, transitions, scores, sum(trajectory.calls for trajectory in trajectories))


@dataclass(frozen=True, slots=True)
class Piece:
    """What one forward and backward call of an update works on: n states, each with s samples drawn from it.

    Where the samples of a group are still one (the window's first step), s is the group's share of the update and the
    one velocity serves them all; elsewhere s is 1.
    """

    step: int
    x: Tensor
    """[n, *latent]"""
    x_next: Tensor
    """[n, s, *latent]"""
    advantages: Tensor
    """[n, s]"""
    prompt: Tensor
    """Row of each state's prompt [n]."""
    sigma: float
    sigma_next: float


def make_pieces(
    transitions: dict[int, Transition],
    advantages: Tensor,
    prompts: Tensor,
    samples: Tensor,
    *,
    micro_batch: int,
) -> list[Piece]:
    """Cut the transitions of some `prompts` [p] and `samples` [S] (indices) into micro-batches of model calls."""
    pieces = []
    chosen = advantages[prompts][:, samples]
    for step, transition in transitions.items():
        x_next = transition.x_next[prompts][:, samples]
        if transition.x.shape[1] == 1:
            x, rows, weights = transition.x[prompts][:, 0], prompts, chosen
        else:
            x = transition.x[prompts][:, samples].flatten(0, 1)
            x_next, weights = x_next.flatten(0, 1).unsqueeze(1), chosen.flatten().unsqueeze(1)
            rows = prompts.repeat_interleave(len(samples))
        pieces += [
            Piece(step, x_part, next_part, advantages_part, rows_part, transition.sigma, transition.sigma_next)
            for x_part, next_part, advantages_part, rows_part in zip(
                *(tensor.split(micro_batch) for tensor in (x, x_next, weights, rows)), strict=True
            )
        ]
    return pieces


def score_piece(velocity: Tensor, piece: Piece, kernel: Kernel) -> tuple[Gaussian, Tensor]:
    """Return the kernel at the piece's states, means [n, *latent], and the log-probabilities [n * s] of its samples."""
    step_kernel = kernel(piece.x, velocity, sigma=piece.sigma, sigma_next=piece.sigma_next)
    mean = step_kernel.mean.unsqueeze(1).expand_as(piece.x_next).flatten(0, 1)
    return step_kernel, log_prob(Gaussian(mean, step_kernel.std), piece.x_next.flatten(0, 1))


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """Figures about the updates of one iteration; means over its samples and trained steps."""

    metrics: dict[str, float]
    steps: dict[int, dict[str, float]]
    """The same by trained step."""
    grad_norm: float
    """Mean over the updates, before clipping."""
    skipped: list[bool]
    """For every update in turn, whether a loss or gradient that is not finite cost it."""
    calls: int
    """States that went through the model forwards and backwards."""


class Updater:
    """Takes the optimiser updates of an iteration."""

    def __init__(
        self, policy: Policy, optimizer: torch.optim.Optimizer, config: Config, kernel: Kernel, clock: Clock
    ) -> None:
        """Take what all iterations share."""
        self.policy = policy
        self.optimizer = optimizer
        self.config = config
        self.kernel = kernel
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

        On the first update the policy has not moved, so its old log-probability is its own, detached, and the ratio is
        exactly 1. Later updates compare with log-probabilities taken before the first one, in the same pieces.
        """
        shares = [
            make_pieces(experience.transitions, advantages, *share, micro_batch=self.config.loss.micro_batch)
            for share in split_shares(advantages, self.config.loss)
        ]
        old = [None, *([self._old_log_prob(piece, experience) for piece in share] for share in shares[1:])]
        tally = _Tally()
        norms, done = [], 0
        num_pieces = sum(len(share) for share in shares)
        for index, (share, old_log_probs) in enumerate(zip(shares, old, strict=True)):
            size = sum(piece.advantages.numel() for piece in share)
            self.optimizer.zero_grad(set_to_none=True)
            finite = torch.ones((), dtype=torch.bool, device=advantages.device)
            for number, piece in enumerate(share):
                if index == 0:
                    stop.check()  # nothing is changed yet, so the iteration can simply be done again
                loss = self._accumulate(piece, experience, old_log_probs and old_log_probs[number], size, tally)
                finite &= torch.isfinite(loss)
                done += 1
                progress(done, num_pieces)
            norms.append(self._step(first_update + index, bool(finite)))
        taken = [norm for norm in norms if norm is not None]
        return UpdateReport(
            metrics=tally.means(),
            steps=tally.means_by_step(),
            grad_norm=sum(taken) / len(taken) if taken else math.nan,
            skipped=[norm is None for norm in norms],
            calls=sum(len(piece.x) for share in shares for piece in share),
        )

    def _velocity(self, piece: Piece, experience: Experience, predict: Callable[..., Tensor]) -> Tensor:
        with self.clock.span("model"):
            return predict(piece.x, piece.sigma, experience.conditioning.take(piece.prompt))

    @torch.no_grad()
    def _old_log_prob(self, piece: Piece, experience: Experience) -> Tensor:
        return score_piece(self._velocity(piece, experience, self.policy.velocity), piece, self.kernel)[1]

    def _accumulate(
        self, piece: Piece, experience: Experience, old_log_prob: Tensor | None, size: int, tally: "_Tally"
    ) -> Tensor:
        """Add a piece's share of the gradient of the mean loss over `size` samples; return its loss, detached."""
        step_kernel, new = score_piece(self._velocity(piece, experience, self.policy.velocity), piece, self.kernel)
        old = new.detach() if old_log_prob is None else old_log_prob
        loss, metrics = grpo_loss(new, old, piece.advantages.flatten(), clip_range=self.config.loss.clip_range)
        metrics["loss"] = loss.detach()
        if self.config.loss.kl_weight:
            reference = self._velocity(piece, experience, self.policy.reference_velocity)
            kl = gaussian_kl(step_kernel, score_piece(reference, piece, self.kernel)[0]).mean()
            loss = loss + self.config.loss.kl_weight * kl
            metrics["kl"] = kl.detach()
        count = piece.advantages.numel()
        tally.add(piece.step, count, metrics)
        with self.clock.span("model"):
            (loss * (count / size)).backward()
        return loss.detach()

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


def split_shares(advantages: Tensor, loss: LossConfig) -> list[tuple[Tensor, Tensor]]:
    """Return the (prompts, samples) indices of each update: all prompts and some samples of each, or the reverse."""
    num_prompts, group_size = advantages.shape
    prompts = torch.arange(num_prompts, device=advantages.device)
    samples = torch.arange(group_size, device=advantages.device)
    updates = loss.updates_per_iteration
    if loss.update_split == "samples":
        return [(prompts, samples[first::updates]) for first in range(updates)]
    return [(prompts[first::updates], samples) for first in range(updates)]


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
    """Weighted sums of metrics that stay on the device until they are asked for."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, dict[str, Tensor]]] = []

    def add(self, step: int, count: int, metrics: dict[str, Tensor]) -> None:
        self._rows.append((step, count, metrics))

    def means(self, step: int | None = None) -> dict[str, float]:
        """Return the means over all rows or those of a step; a name that ends in _max gets its maximum."""
        rows = [(count, metrics) for row_step, count, metrics in self._rows if step in (None, row_step)]
        total = sum(count for count, _ in rows)
        return {
            name: max(metrics[name].item() for _, metrics in rows)
            if name.endswith("_max")
            else sum(count * metrics[name].item() for count, metrics in rows) / total
            for name in rows[0][1]
        }

    def means_by_step(self) -> dict[int, dict[str, float]]:
        return {step: self.means(step) for step in sorted({step for step, _, _ in self._rows})}
