"""Noise as a function of what it is for, so that batching, ranks and resuming cannot change it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixgrpo.flow.keyed import keyed_generator

_WHOLE_GROUP = -1  # the "sample" of noise that a group shares
_INITIAL = -1  # the "step" of the noise that a trajectory starts from
_FORWARD = -2  # the "step" of the noise that is added to a finished sample at step 0; counted down from there


@dataclass(frozen=True, slots=True)
class Noise:
    """The standard normal noise of one iteration, keyed by (seed, iteration, prompt, sample, step).

    It is drawn on the CPU in float32 and moved by the caller, so that it is the same on every device.
    """

    seed: int
    iteration: int
    latent_shape: tuple[int, ...]

    def initial(self, prompt: int, sample: int | None) -> Tensor:
        """Return the noise [*latent] at sigma 1 of a sample, or with None the one that its whole group starts from."""
        return self._draw(prompt, _WHOLE_GROUP if sample is None else sample, _INITIAL)

    def start(self, prompt: int, sample: int, spread: float) -> Tensor:
        """Return the noise [*latent] that a sample starts from when its group lies `spread` in [0, 1] apart.

        It is sqrt(1 - spread^2) times the group's noise plus `spread` times the sample's own (arXiv 2511.16955): a
        standard normal for every spread, one noise for the whole group at 0, independent noises at 1.
        """
        if spread == 0.0:
            return self.initial(prompt, None)
        own = self.initial(prompt, sample)
        return own if spread == 1.0 else math.sqrt(1.0 - spread**2) * self.initial(prompt, None) + spread * own

    def step(self, prompt: int, sample: int, step: int) -> Tensor:
        """Return the noise [*latent] of a stochastic step."""
        return self._draw(prompt, sample, step)

    def forward(self, prompt: int, sample: int, step: int) -> Tensor:
        """Return the noise [*latent] that is added to a finished sample at the sigma of a step."""
        return self._draw(prompt, sample, _FORWARD - step)

    def _draw(self, prompt: int, sample: int, step: int) -> Tensor:
        generator = keyed_generator(self.seed, self.iteration, prompt, sample, step)
        return torch.from_numpy(generator.standard_normal(self.latent_shape, dtype=np.float32))
