"""A network that waits on the CPU is on its device while it scores, and only then."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixgrpo.rewards import make_reward
from mixgrpo.rewards.placement import Placement

DEVICE, REST = torch.device("cpu", 0), torch.device("cpu")
"""The same place, which torch tells apart by name."""


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Note where networks are moved as a whole."""
    seen: list[torch.device] = []
    move: Any = nn.Module.to

    def to(network: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        seen.extend(word for word in args if isinstance(word, torch.device))
        return move(network, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", to)
    return seen


def test_it_comes_back_after_an_error_too(moves: list[torch.device]) -> None:
    def fail() -> None:
        with Placement(device="cpu:0", offload=True).at_work(nn.Linear(1, 1)):
            assert moves == [DEVICE]
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert moves == [DEVICE, REST]


def test_it_stays_unless_asked(moves: list[torch.device]) -> None:
    placement = Placement(device="cpu:0")
    assert placement.resting_place == DEVICE
    with placement.at_work(nn.Linear(1, 1)):
        pass
    assert moves == []


def test_scores_are_the_same_with_and_without(
    clip_folder: Path, clip_images: Tensor, moves: list[torch.device]
) -> None:
    paths = {"path": str(clip_folder), "processor": str(clip_folder), "device": "cpu:0"}
    scores = []
    for offload in (False, True):
        reward = make_reward("pickscore", {**paths, "offload": offload})
        moves.clear()
        scores.append(torch.as_tensor(reward(clip_images, ["the cat", "a red river", "the cat"])))
        assert moves == ([DEVICE, REST] if offload else [])
    assert torch.equal(*scores)
