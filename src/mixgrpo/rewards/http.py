"""A reward that is worked out somewhere else: images and prompts go to a server, scores come back (protocol 1).

Images travel with 8 bits per colour. A reward that itself rounds to 8 bits, as `ocr`, `tesseract` and `jpeg` do, gives
the same scores as it does locally; any other differs by what rounding the colours does to it.

Nothing that a server does raises: the images of a request that fails have no score (NaN) and the reason as message.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from mixgrpo.config.messages import did_you_mean
from mixgrpo.errors import ConfigError, RewardError
from mixgrpo.rewards.base import Scores, columns_of, shown
from mixgrpo.rewards.client import Client, Greeting, side_by_side
from mixgrpo.rewards.options import HttpOptions
from mixgrpo.rewards.wire import VERSION, Health, ScoreReply, as_pixels, pack_image

_NAN = float("nan")


class _Answer(NamedTuple):
    """What came of one request."""

    scores: list[float]
    details: Mapping[str, list[float]]
    failures: list[str]


class HttpReward:
    """Asks a server that speaks protocol 1, such as `mixgrpo serve-reward`."""

    name = "http"

    def __init__(self, options: HttpOptions, *, sleep: Callable[[float], object] = time.sleep) -> None:
        """Ask every server what it has.

        Raises:
            ConfigError: A server has no such reward or speaks something else, or an option is wrong.
            RewardError: No server can be reached.
        """
        self._options = options
        self._client = Client(self.name, options, sleep=sleep)
        for greeting in self._client.greet("/health"):
            _check_health(greeting, options.reward)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Score images [B, 3, H, W] in [0, 1] as the server does: [B], NaN where it does not."""
        whole = images.isfinite().flatten(1).all(dim=1).tolist()
        rows = [row for row, is_whole in enumerate(whole) if is_whole]
        broken = [f"a pixel is not finite {shown(prompts[row])}" for row, is_whole in enumerate(whole) if not is_whole]
        if not rows:
            return Scores(torch.full((len(images),), _NAN), {}, broken)
        pixels, size = as_pixels(images), self._options.batch_size
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        answers = side_by_side(
            lambda chunk: self._ask(pixels[chunk], [prompts[row] for row in chunk]),
            chunks,
            limit=self._options.concurrent,
        )
        values = torch.full((len(images),), _NAN)
        details = {name: torch.full((len(images),), _NAN) for answer in answers for name in answer.details}
        for chunk, answer in zip(chunks, answers, strict=True):
            values[chunk] = torch.tensor(answer.scores)
            for name, figures in answer.details.items():
                details[name][chunk] = torch.tensor(figures)
        return Scores(values, details, [*broken, *(text for answer in answers for text in answer.failures)])

    def _ask(self, pixels: Tensor, prompts: Sequence[str]) -> _Answer:
        """Score the images of one request."""
        try:
            return _read_reply(self._client.post("/score", self._pack(pixels, prompts)), prompts)
        except RewardError as error:
            nothing = [_NAN] * len(prompts)
            return _Answer(nothing, {}, [f"{error} ({len(prompts)} images not scored)"])

    def _pack(self, pixels: Tensor, prompts: Sequence[str]) -> bytes:
        """Write a request.

        Raises:
            RewardError: A column is not something that JSON can say.
        """
        request: dict[str, object] = {
            "version": VERSION,
            "images": [pack_image(picture, self._options.image_format) for picture in pixels],
            "prompts": list(prompts),
        }
        if self._options.reward:
            request["reward"] = self._options.reward
        if any(columns_of(prompt) for prompt in prompts):
            request["columns"] = [dict(columns_of(prompt)) for prompt in prompts]
        try:
            return json.dumps(request, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise RewardError(f"the columns of the prompts cannot be sent as JSON: {error}") from error


def _read_reply(body: bytes, prompts: Sequence[str]) -> _Answer:
    """Check what the server said.

    Raises:
        RewardError: It is not protocol 1, or not one number per image.
    """
    try:
        reply = ScoreReply.model_validate_json(body)
    except ValidationError as error:
        raise RewardError(f"the server's answer is not that of protocol 1: {_first(error)}") from error
    for name, figures in [("scores", reply.scores), *reply.details.items()]:
        if len(figures) != len(prompts):
            raise RewardError(f"the server's answer has {len(figures)} {name} for {len(prompts)} images")
    scores = _numbers(reply.scores)
    unscored = [prompt for prompt, score in zip(prompts, scores, strict=True) if not math.isfinite(score)]
    failures = reply.failures or [f"the server could not score it {shown(prompt)}" for prompt in unscored]
    return _Answer(scores, {name: _numbers(figures) for name, figures in reply.details.items()}, failures)


def _numbers(figures: Sequence[float | None]) -> list[float]:
    return [_NAN if figure is None else figure for figure in figures]


def _check_health(greeting: Greeting, reward: str) -> None:
    """Make sure that a server has the reward.

    Raises:
        ConfigError: It has not, or it is no server of this kind.
    """
    wrong = f"the reward 'http': {greeting.url} is no reward server: GET /health answered"
    if greeting.status != 200:
        raise ConfigError(f"{wrong} {greeting.status}. See mixgrpo serve-reward --help")
    try:
        health = Health.model_validate_json(greeting.body)
    except ValidationError as error:
        raise ConfigError(f"{wrong} with something else: {_first(error)}") from error
    if health.version != VERSION:
        raise ConfigError(
            f"the reward 'http': {greeting.url} speaks protocol {health.version}, this is {VERSION}; "
            f"update the older of the two"
        )
    there = ", ".join(health.rewards)
    if not reward and len(health.rewards) != 1:
        raise ConfigError(f"the reward 'http': {greeting.url} has several rewards: name one with reward, of {there}")
    if reward and reward not in health.rewards:
        hint = did_you_mean(reward, health.rewards)
        raise ConfigError(f"the reward 'http': {greeting.url} has no reward {reward!r}{hint or '.'} It has: {there}")


def _first(error: ValidationError) -> str:
    """Return the first thing that is wrong with a document."""
    details = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, details["loc"]))
    return f"{where}: {details['msg']}" if where else details["msg"]
