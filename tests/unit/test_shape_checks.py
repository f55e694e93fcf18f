"""The annotations of the core are checked while the tests run: a shape that would broadcast silently is an error."""

import pytest
import torch
from jaxtyping import TypeCheckError

from mixgrpo.flow.steps import ode_step
from mixgrpo.rl.advantages import group_advantages
from mixgrpo.rl.loss import grpo_loss


def test_a_velocity_that_would_broadcast_is_refused() -> None:
    with pytest.raises(TypeCheckError):
        ode_step(torch.zeros(2, 3), torch.zeros(2, 1), sigma=0.5, sigma_next=0.4)


def test_log_probs_and_advantages_of_different_lengths_are_refused() -> None:
    with pytest.raises(TypeCheckError):
        grpo_loss(torch.zeros(3), torch.zeros(3), torch.ones(1), clip_range=0.1)


def test_scores_without_a_group_dimension_are_refused() -> None:
    with pytest.raises(TypeCheckError):
        group_advantages({"ocr": torch.zeros(4)})
