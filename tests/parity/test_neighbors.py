"""Updates on neighbouring samples against a loop over single anchors, and how anchors are drawn."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mixgrpo.flow.rollout import Transition
from mixgrpo.train.pieces import Piece
from parity.bench import (
    GROUP,
    NUM_PROMPTS,
    advantages,
    assert_same_weights,
    clipped,
    config,
    draw,
    repeat_updates,
    sample_of,
    shares_by_hand,
    update,
    velocity_divergence,
)
from parity.toy import Network, ToyPolicy


def anchors_of(pieces: list[Piece], transitions: dict[int, Transition]) -> list[tuple[int, int, int]]:
    """(prompt, member, step) of every state of the pieces, told by the state itself."""
    found = []
    for piece in pieces:
        for x, p in zip(piece.x, piece.prompt.tolist(), strict=True):
            same = [g for g in range(GROUP) if torch.equal(transitions[piece.step].x[p, g], x)]
            found += [(p, g, piece.step) for g in same]
            assert len(same) == 1
    return found


@pytest.mark.parametrize(("count", "split"), [(1, "samples"), (3, "prompts")])
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize("anchors", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 4, 100])
def test_updates_on_neighboring_samples(
    count: int, split: str, kl_weight: float, anchors: int, micro_batch: int
) -> None:
    clip_range, temperature = 1e-3, 0.7
    transitions = draw(spread=0.3, stochastic=False).transitions
    loss = {"clip_range": clip_range, "temperature": temperature, "anchors": anchors, "kl_weight": kl_weight}
    settings = config(
        {
            "type": "neighbor",
            **loss,
            "updates_per_iteration": count,
            "update_split": split,
            "micro_batch": micro_batch,
        },
        kernel="ode",
        spread=0.3,
    )
    policy, report, spy = update(settings, transitions, advantages())
    chosen = [anchors_of(pieces, transitions) for pieces in spy.seen]
    for share, found in zip(shares_by_hand(count, split), chosen, strict=True):
        prompts = {p for p, _ in share}
        assert len(set(found)) == len(found) == len(prompts) * anchors * len(transitions)
        assert {p for p, _, _ in found} == prompts
    for piece in (piece for pieces in spy.seen for piece in pieces):
        assert len(piece.x) <= micro_batch
        for i, state in enumerate(piece.state.tolist()):
            prompt, member = piece.prompt[state], i % GROUP
            assert torch.equal(piece.x_next[i], transitions[piece.step].x_next[prompt, member])
            assert piece.advantages[i] == advantages()[prompt, member]

    def log_softmax(network: Network, prompt: int, member: int, step: int) -> Tensor:
        sample = sample_of(transitions, prompt, member, step)
        candidates = [sample_of(transitions, prompt, g, step).x_next for g in range(GROUP)]
        landed = sample.x + (sample.sigma_next - sample.sigma) * sample.velocity(network)
        unit = sum(((a - b) ** 2).mean().item() for a in candidates for b in candidates) / (GROUP * (GROUP - 1))
        scores = torch.stack([-((c - landed) ** 2).mean() / (temperature * unit) for c in candidates])
        return scores - torch.log(scores.exp().sum())

    start, weights = policy.start, advantages().double()

    def loss_of(keys: list[tuple[int, int, int]]) -> Callable[[Network, Network], Tensor]:
        def total(network: Network, old: Network) -> Tensor:
            terms, distances = [], []
            for key in keys:
                change = log_softmax(network, *key) - log_softmax(old, *key)
                terms += [clipped(change[g], weights[key[0], g].item(), clip_range) for g in range(GROUP)]
                distances.append(velocity_divergence(sample_of(transitions, *key), network, start))
            return torch.stack(terms).mean() + kl_weight * torch.stack(distances).mean()

        return total

    expected = ToyPolicy()
    for _ in repeat_updates(expected, [loss_of(keys) for keys in chosen]):
        pass
    assert_same_weights(policy.network, expected.network, 1e-6)
    if count > 1:
        assert report.metrics["clip_fraction"] > 0, "the test must reach the bound"


def test_anchors_change_with_step_prompt_and_iteration_and_not_with_micro_batch_or_share() -> None:
    transitions = draw(spread=0.3, stochastic=False).transitions
    base = {"type": "neighbor", "anchors": 1}

    def chosen(first_update: int = 0, **loss: Any) -> set[tuple[int, int, int]]:
        settings = config({**base, **loss}, kernel="ode", spread=0.3)
        _, _, spy = update(settings, transitions, advantages(), first_update=first_update)
        return {key for pieces in spy.seen for key in anchors_of(pieces, transitions)}

    plain = chosen()
    assert chosen(micro_batch=100) == plain
    assert chosen(updates_per_iteration=3, update_split="prompts") == plain
    assert chosen(3, updates_per_iteration=3, update_split="prompts") == chosen(1) != plain
    drawn = [chosen(iteration) for iteration in range(60)]
    for p in range(NUM_PROMPTS):
        for step in transitions:
            members = [g for keys in drawn for q, g, s in keys if (q, s) == (p, step)]
            assert all(4 <= members.count(g) <= 30 for g in range(GROUP)), "every member about as often"
    one, other = (
        [next(g for p, g, step in keys if (p, step) == place) for keys in drawn] for place in ((0, 1), (0, 2))
    )
    assert one != other
    assert one != [next(g for p, g, step in keys if (p, step) == (1, 1)) for keys in drawn]
