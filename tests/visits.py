"""Visits to a device that is the same place: what visits is a copy, as on a GPU, and can be told from what rests."""

import pytest
import torch
from torch import Tensor, nn


class Guests:
    """Tells which networks are away from where they rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let visits be copies from now on."""
        self._copies: set[int] = set()

        def moved(tensor: Tensor, device: torch.device) -> Tensor:
            copy = tensor.to(device).clone()
            self._copies.add(copy.data_ptr())
            return copy

        monkeypatch.setattr("mixgrpo.visits._moved", moved)

    def away(self, network: nn.Module) -> bool:
        """Return whether the tensors of a network are copies, all of them or none."""
        found = {tensor.data_ptr() in self._copies for tensor in (*network.parameters(), *network.buffers())}
        assert len(found) == 1
        return found.pop()
