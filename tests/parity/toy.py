"""A velocity network of two layers in float64, and a policy around it: updates on it can be repeated by hand."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mixgrpo.models import Conditioning

LATENT = (3, 2)


class Network(nn.Module):
    """A small velocity network in float64 that sees the prompt through a bias."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(6, 6, generator=generator, dtype=torch.float64) * 0.6)
        self.second = nn.Parameter(torch.randn(6, 6, generator=generator, dtype=torch.float64) * 0.6)

    def forward(self, x: Tensor, sigma: float, bias: Tensor) -> Tensor:
        bias = bias.to(self.first.dtype)
        hidden = torch.tanh(x.to(self.first.dtype).flatten(1) @ self.first + sigma * bias)
        return (hidden @ self.second + bias).reshape(x.shape)


def changed(factor: float) -> Network:
    """The network with its second layer scaled: a starting model or a sampling policy that is not the policy."""
    network = Network()
    with torch.no_grad():
        network.second.mul_(factor)
    return network


class ToyPolicy:
    """A policy in full training: the network, and a frozen model where it started.

    The starting model is another one, so that an update's divergence to it has a gradient from the first. With `lags`
    so is the sampling policy.
    """

    def __init__(self, *, lags: bool = False) -> None:
        self.network, self.start = Network(), changed(0.7)
        self.trained = dict(self.network.named_parameters())
        self.lagging: dict[str, Tensor] = dict(changed(1.2).named_parameters()) if lags else {}
        self.calls = {"update": 0, "old": 0, "reference": 0}
        self.averaged = 0
        self._asks_start = False

    def velocity(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        if self._asks_start:
            self.calls["reference"] += len(x)
            return self.start(x, sigma, conditioning.tensors["bias"])
        self.calls["update" if torch.is_grad_enabled() else "old"] += len(x)
        return self.network(x, sigma, conditioning.tensors["bias"])

    def update_average(self) -> None:
        self.averaged += 1

    @contextmanager
    def reference(self) -> Iterator[None]:
        self._asks_start = True
        try:
            yield
        finally:
            self._asks_start = False

    @contextmanager
    def sampling(self) -> Iterator[None]:
        trained = {name: parameter.data for name, parameter in self.trained.items()}
        for name, weight in self.lagging.items():
            self.trained[name].data = weight.data
        try:
            yield
        finally:
            for name, weight in trained.items():
                self.trained[name].data = weight
