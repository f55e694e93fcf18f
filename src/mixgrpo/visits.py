"""Networks that rest elsewhere than where they work: less memory on a device, a copy for every visit."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def visiting(networks: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Have the tensors of `networks` on `device` meanwhile; nothing may change them there.

    The tensors that rest are kept and put back, so that the way back copies nothing.
    """
    resting: list[tuple[Tensor, Tensor]] = []
    try:
        for network in networks:
            for tensor in (*network.parameters(), *network.buffers()):
                resting.append((tensor, tensor.data))
                tensor.data = _moved(tensor.data, device)
        yield
    finally:
        for tensor, data in resting:
            tensor.data = data


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device)
