"""A vision-language model as a judge, behind a server that speaks OpenAI's chat completions, as vLLM and SGLang do.

Every image is one request with the image and the filled-in template. What the answer says becomes the score, and an
answer that says none is a failure of that image. Nothing that a server does raises.
"""

import json
import time
from collections.abc import Callable, Sequence

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from mixgrpo.config.messages import did_you_mean
from mixgrpo.errors import ConfigError, RewardError
from mixgrpo.rewards.base import Scores, columns_of, shown
from mixgrpo.rewards.client import Client, Greeting, side_by_side
from mixgrpo.rewards.judging import AnswerReader, Candidate, Token, fill, find_template, said
from mixgrpo.rewards.options import VlmOptions
from mixgrpo.rewards.wire import as_pixels, pack_image

_NAN = float("nan")

_WEIGHED = 20
"""Tokens weighed in place of each that are asked for: the most that the protocol allows."""


class _Candidate(BaseModel):
    token: str
    logprob: float


class _Token(BaseModel):
    token: str
    top_logprobs: list[_Candidate] = []


class _LogProbs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _LogProbs | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class VlmReward:
    """Asks a judge about every image."""

    name = "vlm"

    def __init__(self, options: VlmOptions, *, sleep: Callable[[float], object] = time.sleep) -> None:
        """Check the options, and that the servers are there and have the model, where they say what they have.

        Raises:
            ConfigError: An option is wrong, or a server has no such model.
            RewardError: No server can be reached.
        """
        self._options = options
        try:
            json.dumps(options.extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the vlm reward's extra cannot be sent as JSON: {error}") from error
        self._template = find_template(options.template)
        self._reader = AnswerReader(options.parse, *options.score_range)
        self._reader.check(logprobs=options.logprobs)
        self._client = Client(self.name, options, sleep=sleep)
        for greeting in self._client.greet("/models"):
            _check_models(greeting, options.model)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Score images [B, 3, H, W] in [0, 1]: [B] in `score_range`, or in [0, 1]; NaN where the answer says none."""
        whole = images.isfinite().flatten(1).all(dim=1).tolist()
        pixels = as_pixels(images)
        answers = side_by_side(
            lambda row: self._score(pixels[row], prompts[row]) if whole[row] else "a pixel is not finite",
            range(len(images)),
            limit=self._options.concurrent,
        )
        values = torch.tensor([_NAN if isinstance(answer, str) else answer for answer in answers])
        paired = zip(answers, prompts, strict=True)
        return Scores(values, {}, [f"{text} {shown(prompt)}" for text, prompt in paired if isinstance(text, str)])

    def _score(self, pixels: Tensor, prompt: str) -> float | str:
        """Return an image's score, or why it has none."""
        try:
            reply = self._client.post("/chat/completions", self._request(pixels, prompt))
            value = self._read(reply)
        except RewardError as error:
            return str(error)
        low, high = self._options.score_range
        return (value - low) / (high - low) if self._options.normalise else value

    def _request(self, pixels: Tensor, prompt: str) -> bytes:
        options = self._options
        kind = options.image_format
        question = [
            {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{pack_image(pixels, kind)}"}},
            {"type": "text", "text": fill(self._template, prompt, columns_of(prompt))},
        ]
        request = {
            "model": options.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
        }
        if options.logprobs:
            request |= {"logprobs": True, "top_logprobs": _WEIGHED}
        return json.dumps(request | options.extra).encode()

    def _read(self, body: bytes) -> float:
        """Return what the judge's answer says.

        Raises:
            RewardError: It says no score in range.
        """
        try:
            choice = _Completion.model_validate_json(body).choices[0]
        except ValidationError as error:
            text = body.decode(errors="replace")
            raise RewardError(f"the server's answer is no chat completion{said(text)}") from error
        answer = choice.message.content
        if not answer:
            why = "the judge refused" if choice.message.refusal else "the judge said nothing"
            raise RewardError(f"{why}{said(choice.message.refusal or '')}")
        try:
            return self._reader.expect(_tokens(choice)) if self._options.logprobs else self._reader.read(answer)
        except RewardError as error:
            if choice.finish_reason == "length":
                raise RewardError(f"cut off at max_tokens = {self._options.max_tokens}: {error}") from error
            raise


def _tokens(choice: _Choice) -> list[Token]:
    tokens = choice.logprobs.content if choice.logprobs else None
    if not tokens:
        raise RewardError("the server gives no logprobs; set logprobs = false, or have the server give them")
    return [
        Token(token.token, [Candidate(other.token, other.logprob) for other in token.top_logprobs]) for token in tokens
    ]


def _check_models(greeting: Greeting, model: str) -> None:
    """Make sure that a server has the model. One that does not list its models is believed.

    Raises:
        ConfigError: It has others.
    """
    if greeting.status != 200:
        return
    try:
        names = [found.id for found in _Models.model_validate_json(greeting.body).data]
    except ValidationError:
        raise ConfigError(
            f"the reward 'vlm': {greeting.url}/models does not answer like an OpenAI-compatible server. "
            f"The url is what comes before /chat/completions, mostly ending in /v1"
        ) from None
    if model not in names:
        raise ConfigError(
            f"the reward 'vlm': {greeting.url} has no model {model!r}{did_you_mean(model, names) or '.'} "
            f"It has: {', '.join(names)}"
        )
