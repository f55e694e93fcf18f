"""A network that waits on the CPU is on its device while it scores, and only then."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixgrpo.rewards import make_reward
from mixgrpo.rewards.placement import Placement
from tests.visits import Guests

DEVICE, REST = torch.device("cpu", 0), torch.device("cpu")
"""The same place, which torch tells apart by name."""


@pytest.mark.parametrize("offload", [False, True])
def test_a_network_that_may_rest_works_on_a_copy(offload: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    guests, network = Guests(monkeypatch), nn.Linear(1, 1)
    with Placement(device="cpu:0", offload=offload).at_work(network):
        assert guests.away(network) == offload
    assert not guests.away(network)


def test_it_rests_on_the_cpu_only_if_asked() -> None:
    assert Placement(device="cpu:0").resting_place == DEVICE
    assert Placement(device="cpu:0", offload=True).resting_place == REST


def test_scores_are_the_same_with_and_without(
    clip_folder: Path, clip_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {"path": str(clip_folder), "processor": str(clip_folder), "device": "cpu:0"}
    guests, scores = Guests(monkeypatch), []
    for offload in (False, True):
        reward: Any = make_reward("pickscore", {**paths, "offload": offload})
        away: list[bool] = []
        network = reward._encoder._model
        for part in (network.vision_model, network.text_model):
            part.register_forward_pre_hook(lambda *_, network=network, away=away: away.append(guests.away(network)))
        scores.append(torch.as_tensor(reward(clip_images, ["the cat", "a red river", "the cat"])))
        assert set(away) == {offload}
        assert not guests.away(network)
    assert torch.equal(*scores)
