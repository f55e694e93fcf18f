"""What a reward is, and the check on what one returned.

A reward scores pictures against their prompts: `(images, prompts) -> one score per image`, higher is better.
Images are float32 RGB in [0, 1], shape [B, 3, H, W]. Of clips a reward gets the frames, unless it has an attribute
`takes_video = True`: then it gets clips [B, F, 3, H, W] (`rewards/frames.py`). NaN means "could not be scored"; it is
never read as a low score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from mixgrpo.errors import RewardError

if TYPE_CHECKING:  # so that naming the rewards, as `mixgrpo plan` does, need not load torch
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

_SHOWN_PROMPT = 80
"""Characters of a prompt that a message shows."""


class Scores(NamedTuple):
    """What a reward returns when it has more to tell than one figure per image."""

    values: Tensor
    """The score of every image, [B]; NaN = could not be scored."""
    details: dict[str, Tensor]
    """Further figures per image, each [B]: reported as `<reward>/<detail>`, never trained on."""
    failures: Sequence[str] = ()
    """Why images have no score, in the reward's own words; where it is empty, the scorer words it."""


@runtime_checkable
class Reward(Protocol):
    """Anything with a name that can be called with pictures and prompts.

    It is called from one thread at a time, without gradients, and must not change the images it is given.
    """

    name: str
    """What messages call it."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor | Sequence[float] | Scores:
        """Score float32 images [B, 3, H, W] in [0, 1] against their B prompts: a figure each, higher is better.

        With `takes_video = True` they are clips [B, F, 3, H, W], F = 1 where a model draws images.
        """
        ...


@dataclass
class NamedReward:
    """A plain function as a reward: what a user's factory returns need not be a class."""

    name: str
    score: Callable[..., Any]
    """Called with (images, prompts); what it returns is checked like any reward's."""
    takes_video: bool = False
    """Whether it is called with clips."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor | Sequence[float] | Scores:
        """Call the function."""
        return self.score(images, prompts)


@runtime_checkable
class _HasColumns(Protocol):
    """A prompt that a line of a file with several columns was read into."""

    @property
    def columns(self) -> Mapping[str, Any]:
        """The other columns of its line."""
        ...


def columns_of(prompt: str) -> Mapping[str, Any]:
    """Return what else the line of a prompt said, by column; nothing for a plain text."""
    return prompt.columns if isinstance(prompt, _HasColumns) else {}


def check_scores(name: str, returned: Tensor | Sequence[float] | Scores, images: Tensor) -> Scores:
    """Return what reward `name` said about `images`, [B, 3, H, W] or clips, as float32 CPU tensors of shape [B].

    An infinite score becomes NaN, for no average survives it, and so does whatever a reward says about a
    picture with pixels that are not finite.

    Raises:
        RewardError: Not one number per image. That is a mistake in the reward, not in a picture.
    """
    values, details, failures = returned if isinstance(returned, Scores) else (returned, {}, ())
    count = len(images)
    scores = _as_figures(f"the reward {name!r}", values, count)
    figures = {key: _as_figures(f"the reward {name!r}, in its detail {key!r},", v, count) for key, v in details.items()}
    return Scores(mask_unscorable(scores.where(scores.isfinite(), float("nan")), images), figures, failures)


def shown(prompt: str) -> str:
    """Return how a message names the prompt of an image that has no score."""
    return f"(prompt: {prompt[:_SHOWN_PROMPT]!r})"


def mask_unscorable(values: Tensor, images: Tensor) -> Tensor:
    """Return `values` [B] on the CPU, NaN where an image of [B, 3, H, W], or a clip, has a pixel that is not finite."""
    return values.cpu().where(images.isfinite().flatten(1).all(dim=1).cpu(), float("nan"))


def _as_figures(who: str, values: Tensor | Sequence[float], count: int) -> Tensor:
    """Return `values` as a float32 CPU tensor of shape [count], or raise a RewardError about `who`."""
    import torch  # noqa: PLC0415 (this module is also imported where torch is not wanted)

    wanted = f"It must return one number per image: here a tensor of shape [{count}] or {count} floats"
    try:
        figures = torch.as_tensor(values).detach().to("cpu", torch.float32, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"{who} returned something that is not numbers ({error}). {wanted}, NaN where it has no score"
        ) from error
    if figures.shape != (count,):
        raise RewardError(f"{who} returned values of shape {list(figures.shape)} for {count} images. {wanted}")
    return figures
