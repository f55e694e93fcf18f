"""The work of an update, cut into pieces of one model call each.

Shapes: P prompts, G samples per prompt. A share is a mask [P, G] of the samples that one update is about.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mixgrpo.config.sections import LossSection
from mixgrpo.flow.keyed import keyed_generator
from mixgrpo.flow.rollout import Transition

_ANCHORS = 0x616E6368  # keeps the anchors' stream apart from every stream of sampling noise


@dataclass(frozen=True, slots=True)
class Piece:
    """What one forward and backward call works on: n states, and the m samples that are scored from them.

    Where the samples of a group are still one (the window's first step), several samples share a state and its one
    velocity serves them all; so do the candidates of an anchor. Elsewhere every sample has a state of its own.
    """

    step: int
    sigma: float
    sigma_next: float
    x: Tensor
    """[n, *latent]"""
    prompt: Tensor
    """Row of each state's prompt [n]."""
    x_next: Tensor
    """[m, *latent]"""
    state: Tensor
    """Which of the n states each sample belongs to [m]."""
    advantages: Tensor
    """[m]"""


def sample_pieces(
    transitions: Mapping[int, Transition], advantages: Tensor, share: Tensor, *, micro_batch: int
) -> list[Piece]:
    """Cut the transitions of a share's samples into pieces of at most `micro_batch` states."""
    prompt, sample = share.nonzero(as_tuple=True)
    pieces: list[Piece] = []
    for step, transition in transitions.items():
        if transition.x.shape[1] == 1:
            rows, state = prompt.unique(return_inverse=True)
            x = transition.x[rows, 0]
        else:
            rows, state, x = prompt, torch.arange(len(prompt), device=prompt.device), transition.x[prompt, sample]
        pieces += [
            Piece(
                step=step,
                sigma=transition.sigma,
                sigma_next=transition.sigma_next,
                x=x[start : start + micro_batch],
                prompt=rows[start : start + micro_batch],
                x_next=transition.x_next[prompt[chosen], sample[chosen]],
                state=state[chosen] - start,
                advantages=advantages[prompt[chosen], sample[chosen]],
            )
            for start, chosen in _ranges(state, len(x), micro_batch)
        ]
    return pieces


def count_states(transitions: Mapping[int, Transition], share: Tensor) -> int:
    """Return how many states the pieces of a share's samples hold."""
    alone, together = int(share.sum()), int(share.any(1).sum())
    return sum(together if transition.x.shape[1] == 1 else alone for transition in transitions.values())


def anchor_pieces(
    transitions: Mapping[int, Transition],
    advantages: Tensor,
    share: Tensor,
    *,
    anchors: int,
    key: tuple[int, ...],
    micro_batch: int,
) -> list[Piece]:
    """Cut whole groups into pieces: states are some members of a group, samples all members for each of them.

    Which members are the anchors of a prompt and step follows from `key`, its place in the batch and the step alone.
    """
    group_size = advantages.shape[1]
    prompts = share.any(1).nonzero()[:, 0]
    pieces: list[Piece] = []
    for step, transition in transitions.items():
        member = torch.tensor(
            [
                keyed_generator(*key, _ANCHORS, row, step).permutation(group_size)[:anchors].tolist()
                for row in prompts.tolist()
            ],
            device=prompts.device,
        ).flatten()
        rows = prompts.repeat_interleave(anchors)
        for part, part_member in zip(rows.split(micro_batch), member.split(micro_batch), strict=True):
            pieces.append(
                Piece(
                    step=step,
                    sigma=transition.sigma,
                    sigma_next=transition.sigma_next,
                    x=transition.x[part, part_member],
                    prompt=part,
                    x_next=transition.x_next[part].flatten(0, 1),
                    state=torch.arange(len(part), device=part.device).repeat_interleave(group_size),
                    advantages=advantages[part].flatten(),
                )
            )
    return pieces


def split_shares(advantages: Tensor, loss: LossSection) -> list[Tensor]:
    """Return the share [P, G] of each update: some samples of every prompt, or all samples of some prompts."""
    shares = []
    for first in range(loss.updates_per_iteration):
        share = torch.zeros_like(advantages, dtype=torch.bool)
        if loss.update_split == "samples":
            share[:, first :: loss.updates_per_iteration] = True
        else:
            share[first :: loss.updates_per_iteration] = True
        shares.append(share)
    return shares


def _ranges(state: Tensor, count: int, micro_batch: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the first state of each piece, and which samples belong to it, as indices."""
    for start in range(0, count, micro_batch):
        yield start, ((state >= start) & (state < start + micro_batch)).nonzero()[:, 0]
