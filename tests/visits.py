"""A device that is none: what visits it is a copy, as on a GPU, and the visits are noted."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn


class Guests:
    """Tells which networks are away from where they rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let tensors that are moved to a device be copied, though there is only one device."""
        self._copies: set[int] = set()
        move: Any = Tensor.to

        def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not (args and isinstance(args[0], torch.device)):
                return move(tensor, *args, **kwargs)
            copied = move(tensor, *args, **kwargs).clone()
            self._copies.add(copied.data_ptr())
            return copied

        monkeypatch.setattr(Tensor, "to", to)

    def away(self, network: nn.Module) -> bool:
        """Return whether the tensors of a network are copies, all of them or none."""
        found = {tensor.data_ptr() in self._copies for tensor in (*network.parameters(), *network.buffers())}
        assert len(found) == 1
        return found.pop()
