"""The options of the rewards that ask a server. The text under a field is its help in messages."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from mixgrpo.config.messages import did_you_mean
from mixgrpo.config.sections import Section
from mixgrpo.errors import ConfigError

Options = TypeVar("Options", bound="ServerOptions")


def _as_several(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


class ServerOptions(Section):
    """What every reward that asks a server can be told."""

    url: Annotated[tuple[str, ...], BeforeValidator(_as_several), Field(min_length=1)]
    """Address of the server, or a list of addresses, which are used in turn."""
    token_env: str = ""
    """Name of the environment variable that holds the server's token or API key. Empty: none is sent."""
    timeout: float = Field(default=30.0, gt=0.0)
    """Seconds that one request may take. Keep the reward's own `timeout`, which is that of a batch, above it."""
    retries: int = Field(default=3, ge=0, le=20)
    """How often a request is sent again after a connection error, a 429 or a 5xx."""
    image_format: Literal["png", "webp"] = "png"
    """How images travel, both lossless at 8 bits per colour. WebP is faster to pack."""


class HttpOptions(ServerOptions):
    """Options of the reward `http`."""

    reward: str = ""
    """The reward's name on the server. Empty: the only one that it has."""
    batch_size: int = Field(default=8, ge=1)
    """Images per request."""
    concurrent: int = Field(default=4, ge=1)
    """Requests at the same time."""


class VlmOptions(ServerOptions):
    """Options of the reward `vlm`, whose `url` is what the server puts before /chat/completions."""

    model: str
    """The model's name on the server."""
    template: str = "default"
    """What the judge is asked: `default`, `unified-reward`, or the text itself, with {prompt} and {column} in it."""
    parse: str = r"(?i)score\**:\**\s*(-?\d+(?:\.\d+)?)(?!\.?\d|\s*/)"
    """Where the score is: a regular expression with one group, or `json:NAME`. The last place that fits counts."""
    score_range: tuple[float, float] = (1.0, 5.0)
    """Lowest and highest score there is. An answer outside is a failure."""
    normalise: bool = False
    """Map `score_range` to 0 to 1."""
    logprobs: bool = False
    """Take the expected score over the tokens that the judge weighed, in place of the one that it wrote."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest answer."""
    temperature: float = Field(default=0.0, ge=0.0)
    """Of the judge's sampling. 0: the likeliest answer."""
    extra: dict[str, Any] = Field(default={})
    """Further fields of the request, such as chat_template_kwargs."""
    concurrent: int = Field(default=8, ge=1)
    """Requests at the same time; each is one image."""


def read_options(reward: str, kind: type[Options], options: Mapping[str, Any]) -> Options:
    """Check the options of a reward's config.

    Raises:
        ConfigError: Names every option that is missing, unknown or wrong. No value of an unknown one is shown: it may
            be a token.
    """
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        found = [_explain(details["loc"], details["type"], details["msg"], kind) for details in error.errors()]
    raise ConfigError(f"the reward {reward!r}: {'; '.join(found)}")


def _explain(location: tuple[int | str, ...], problem: str, message: str, kind: type[ServerOptions]) -> str:
    known = kind.model_fields
    name = str(location[0])
    if problem == "extra_forbidden":
        secret = any(word in name.lower() for word in ("token", "key", "secret", "header", "auth"))
        hint = (
            ". Secrets are no settings: put it into an environment variable and name that with token_env"
            if secret
            else did_you_mean(name, known) or f". There are: {', '.join(known)}"
        )
        return f"unknown option {name!r}{hint}"
    what = known[name].description
    if problem == "missing" and len(location) == 1:
        return f"the option {name!r} is missing: {what}"
    return f"the option {name!r} is wrong: {message[0].lower()}{message[1:]}. It is: {what}"
