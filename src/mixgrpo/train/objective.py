"""What an update minimises: one object per family of methods, all over the same pieces.

An objective says which states an update needs, and what the loss is given the velocities there: of the policy, and of
the policy that drew the samples.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import AwmLossConfig, GrpoLossConfig, NeighborLossConfig, NftLossConfig
from mixgrpo.flow.rollout import Kernel, Transition
from mixgrpo.flow.sigmas import shifted_sigmas
from mixgrpo.flow.steps import Gaussian, log_prob, ode_step
from mixgrpo.rl.forward import matching_log_prob, nft_loss, velocity_distance
from mixgrpo.rl.loss import LossOutput, divergence_masked_loss, gaussian_kl, grpo_loss, normalised_log_ratio
from mixgrpo.rl.neighbor import neighbor_log_prob
from mixgrpo.rl.weights import inverse_step_weights, noise_level_weights
from mixgrpo.train.pieces import Piece, anchor_pieces, sample_pieces


class Objective(Protocol):
    """A family's update."""

    def pieces(
        self, transitions: Mapping[int, Transition], advantages: Tensor, share: Tensor, *, iteration: int
    ) -> list[Piece]:
        """Return the model calls that an update on the samples of `share` [P, G] needs."""
        ...

    def loss(self, piece: Piece, v: Tensor, old_v: Tensor) -> LossOutput:
        """Return the mean loss over the piece's samples; `v` and `old_v` [n, *latent] are those at its states."""
        ...

    def divergence(self, piece: Piece, v: Tensor, other_v: Tensor) -> Tensor:
        """Return how far `v` is from another model's velocity, for each state [n]."""
        ...


def make_objective(config: Config, kernel: Kernel | None) -> Objective:
    """Build what `config.loss` describes; `kernel` is that of the stochastic steps."""
    match config.loss:
        case GrpoLossConfig():
            assert kernel is not None, "the config checks that GRPO has a stochastic step"
            return StochasticSteps(config.loss, kernel, _step_weights(config, config.loss, kernel))
        case NeighborLossConfig():
            return NeighboringSteps(config.loss, config.seed)
        case NftLossConfig():
            return NegativeAwareMatching(config.loss)
        case AwmLossConfig():
            return AdvantageWeightedMatching(config.loss)


class StochasticSteps:
    """GRPO on steps that drew noise: the ratio of two Gaussians at the state that was reached."""

    def __init__(self, loss: GrpoLossConfig, kernel: Kernel, weights: Mapping[int, float]) -> None:
        """Take the settings, the kernel that sampled, and how much each step counts."""
        self.settings = loss
        self.kernel = kernel
        self.weights = weights

    def pieces(
        self, transitions: Mapping[int, Transition], advantages: Tensor, share: Tensor, *, iteration: int
    ) -> list[Piece]:
        """Return one state per sample, or one per group where its samples are still one."""
        del iteration
        return sample_pieces(transitions, advantages, share, micro_batch=self.settings.micro_batch)

    def loss(self, piece: Piece, v: Tensor, old_v: Tensor) -> LossOutput:
        """Return the clipped or masked loss on the (perhaps normalised) ratio, times the step's weight."""
        settings = self.settings
        policy, old = (self._at_samples(piece, velocity) for velocity in (v, old_v))
        if settings.ratio == "normalised":
            new_log = normalised_log_ratio(policy, old, piece.x_next)
            old_log = torch.zeros_like(new_log)
        else:
            new_log, old_log = log_prob(policy, piece.x_next), log_prob(old, piece.x_next)
        if settings.trust_region == "divergence":
            output = divergence_masked_loss(
                new_log,
                old_log,
                piece.advantages,
                divergence=gaussian_kl(policy, old),
                max_divergence=settings.max_divergence,
            )
        else:
            output = grpo_loss(new_log, old_log, piece.advantages, clip_range=settings.clip_range)
        return LossOutput(output.loss * self.weights[piece.step], output.metrics)

    def divergence(self, piece: Piece, v: Tensor, other_v: Tensor) -> Tensor:
        """Return the KL divergence of the two steps."""
        return gaussian_kl(self._at_states(piece, v), self._at_states(piece, other_v))

    def _at_states(self, piece: Piece, v: Tensor) -> Gaussian:
        return self.kernel(piece.x, v, sigma=piece.sigma, sigma_next=piece.sigma_next)

    def _at_samples(self, piece: Piece, v: Tensor) -> Gaussian:
        kernel = self._at_states(piece, v)
        return Gaussian(kernel.mean[piece.state], kernel.std)


class NeighboringSteps:
    """Neighbor GRPO on deterministic steps: which of the group's next states does an anchor's step come closest to."""

    def __init__(self, loss: NeighborLossConfig, seed: int) -> None:
        """Take the settings, and the seed that anchors are drawn with."""
        self.settings = loss
        self.seed = seed

    def pieces(
        self, transitions: Mapping[int, Transition], advantages: Tensor, share: Tensor, *, iteration: int
    ) -> list[Piece]:
        """Return the anchors of each group, with the whole group as candidates."""
        return anchor_pieces(
            transitions,
            advantages,
            share,
            anchors=self.settings.anchors,
            key=(self.seed, iteration),
            micro_batch=self.settings.micro_batch,
        )

    def loss(self, piece: Piece, v: Tensor, old_v: Tensor) -> LossOutput:
        """Return the clipped loss on the ratio of two softmax probabilities, a mean over anchors and candidates."""
        new_log, old_log = self._log_prob(piece, v), self._log_prob(piece, old_v)
        return grpo_loss(new_log, old_log, piece.advantages, clip_range=self.settings.clip_range)

    def divergence(self, piece: Piece, v: Tensor, other_v: Tensor) -> Tensor:
        """Return the squared distance of the velocities."""
        return velocity_distance(v.float(), other_v.float())

    def _log_prob(self, piece: Piece, v: Tensor) -> Tensor:
        prediction = ode_step(piece.x, v, sigma=piece.sigma, sigma_next=piece.sigma_next)
        candidates = piece.x_next.unflatten(0, (len(piece.x), -1))
        return neighbor_log_prob(prediction, candidates, temperature=self.settings.temperature).flatten()


class NegativeAwareMatching:
    """DiffusionNFT on the forward process."""

    def __init__(self, loss: NftLossConfig) -> None:
        """Take the settings."""
        self.settings = loss

    def pieces(
        self, transitions: Mapping[int, Transition], advantages: Tensor, share: Tensor, *, iteration: int
    ) -> list[Piece]:
        """Return every sample with noise added."""
        del iteration
        return sample_pieces(transitions, advantages, share, micro_batch=self.settings.micro_batch)

    def loss(self, piece: Piece, v: Tensor, old_v: Tensor) -> LossOutput:
        """Return the loss of the two implicit policies."""
        return nft_loss(
            v.float(),
            old_v.float(),
            _target(piece),
            piece.advantages,
            sigma=piece.sigma,
            beta=self.settings.beta,
            advantage_scale=self.settings.advantage_scale,
        )

    def divergence(self, piece: Piece, v: Tensor, other_v: Tensor) -> Tensor:
        """Return the squared distance of the velocities."""
        return velocity_distance(v.float(), other_v.float())


class AdvantageWeightedMatching:
    """AWM on the forward process."""

    def __init__(self, loss: AwmLossConfig) -> None:
        """Take the settings."""
        self.settings = loss

    def pieces(
        self, transitions: Mapping[int, Transition], advantages: Tensor, share: Tensor, *, iteration: int
    ) -> list[Piece]:
        """Return every sample with noise added."""
        del iteration
        return sample_pieces(transitions, advantages, share, micro_batch=self.settings.micro_batch)

    def loss(self, piece: Piece, v: Tensor, old_v: Tensor) -> LossOutput:
        """Return the clipped loss on the ratio of the stand-in likelihoods."""
        target = _target(piece)
        new_log, old_log = matching_log_prob(v.float(), target), matching_log_prob(old_v.float(), target)
        return grpo_loss(new_log, old_log, piece.advantages, clip_range=self.settings.clip_range)

    def divergence(self, piece: Piece, v: Tensor, other_v: Tensor) -> Tensor:
        """Return the squared distance of the velocities."""
        return velocity_distance(v.float(), other_v.float())


def _target(piece: Piece) -> Tensor:
    """Return the velocity noise - x0 of each sample, whose transition goes straight to x0."""
    return (piece.x[piece.state] - piece.x_next) / piece.sigma


def _step_weights(config: Config, loss: GrpoLossConfig, kernel: Kernel) -> dict[int, float]:
    """Return the weight of every step that may be trained, in the schedule without compressed steps."""
    sigmas = shifted_sigmas(config.rollout.num_steps, config.rollout.shift)[:-1]
    steps = range(len(sigmas) - 1)
    match loss.step_weights:
        case "uniform":
            weights = (1.0,) * len(steps)
        case "inverse_step":
            weights = inverse_step_weights(sigmas)
        case "noise":
            nothing = torch.zeros(1, 1)
            weights = noise_level_weights(
                [kernel(nothing, nothing, sigma=sigmas[step], sigma_next=sigmas[step + 1]).std for step in steps]
            )
    return dict(zip(steps, weights, strict=True))
