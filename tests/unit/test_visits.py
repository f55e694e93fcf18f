"""Networks that rest elsewhere than where they work."""

import pytest
import torch
from torch import nn

from mixgrpo.visits import visiting
from tests.visits import Guests

CPU = torch.device("cpu")


def test_a_visit_is_a_copy_and_what_rests_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    guests, network = Guests(monkeypatch), nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    x = torch.randn(4, 2)
    expected, before = network(x), {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    parameters = list(network.parameters())
    with visiting([network], CPU):
        assert guests.away(network)
        assert torch.equal(network(x), expected)
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == before
    assert all(one is other for one, other in zip(parameters, network.parameters(), strict=True))


def test_it_ends_after_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    guests, network = Guests(monkeypatch), nn.Linear(1, 1)

    def fail() -> None:
        with visiting([network], CPU):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert not guests.away(network)


def test_a_visit_that_fails_half_way_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    guests, network = Guests(monkeypatch), nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, device="meta"))
    with pytest.raises(NotImplementedError), visiting([network], CPU):  # a tensor without data cannot be copied
        pass
    assert not guests.away(network[0])
