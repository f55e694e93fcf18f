"""How much the images of one prompt differ, on their pixels alone."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

SIDE = 32
"""Pixels of a side that images are scaled down to: what is finer does not count."""

STREAM = -1
"""The noise of these images. That of evaluations is 0, and training counts its iterations from there."""


def measure_diversity(
    draw: Callable[[Sequence[str]], Iterator[tuple[range, Tensor]]], prompts: Sequence[str], samples: int
) -> float:
    """Draw `samples` images for each of `prompts` and return their diversity.

    `draw` gets every prompt `samples` times in a row and yields (indices, images [b, ..., 3, H, W]), each image from
    noise of its own.
    """
    batches = draw([prompt for prompt in prompts for _ in range(samples)])
    small = torch.cat([scale_down(images) for _, images in batches])
    return diversity(small.unflatten(0, (len(prompts), samples)))


def scale_down(images: Tensor) -> Tensor:
    """Average images or videos [..., H, W] over areas, to `SIDE` pixels where a side has more."""
    *leading, height, width = images.shape
    size = (min(height, SIDE), min(width, SIDE))
    return adaptive_avg_pool2d(images.reshape(-1, 1, height, width), size).reshape(*leading, *size)


def diversity(images: Tensor) -> float:
    """Return the mean over the prompts of the mean distance between two of their images [P, N, ...], N at least 2.

    The distance is the root of the mean squared difference over all that an image has: pixels, colours and, of a video,
    frames. In [0, 1] for images in [0, 1]; 0 if all images of a prompt are one.
    """
    flat_PND = images.double().flatten(2)
    distances = torch.stack([torch.pdist(flat_ND) for flat_ND in flat_PND]) / flat_PND.shape[-1] ** 0.5
    return distances.mean().item()
