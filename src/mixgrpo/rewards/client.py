"""Requests to servers that may be slow, busy or gone: bounded tries, several addresses, a token that is never shown.

- Several addresses are used in turn. One that cannot be reached is left out for half a minute, and that is said in the
  log; then it is tried again.
- Connection errors, 429 and 5xx are tried again: at once where another server is up, else after a pause that doubles
  from try to try, at random between half of it and all of it, so that clients do not come back in step. A server's
  `Retry-After` is kept to. A time-out is not tried again: a server that is too slow gets no faster by more work.
- After a request for which every try ended in a connection error, the following ones get a single try each, until some
  server answers.
- Every request has a connection of its own. Beside the scoring of an image that costs nothing, and no connection that
  the server has meanwhile closed is ever used.
"""

import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from multiprocessing.pool import ThreadPool
from typing import NamedTuple, TypeVar

import httpx2

from mixgrpo.errors import ConfigError, RewardError
from mixgrpo.rewards.options import ServerOptions

T = TypeVar("T")
U = TypeVar("U")

_FIRST_PAUSE = 0.5  # seconds
_LONGEST_PAUSE = 30.0
_CONNECT = 10.0  # seconds to reach a server, where the time-out is not shorter
_LEFT_OUT = 30.0  # seconds that a server which cannot be reached is left out
_SHORTEST_TOKEN = 8
_SHOWN = 200
"""Characters of a server's words that a message shows."""

_log = logging.getLogger(__name__)


class Greeting(NamedTuple):
    """What a server answered when it was asked whether it is there."""

    url: str
    status: int
    body: bytes


class _Trouble(NamedTuple):
    """Why a try has no answer."""

    text: str
    again: bool
    """Whether another try may help."""
    reached: bool
    """Whether the server said anything at all."""


@dataclass(eq=False)
class _Server:
    url: str
    not_before: float = 0.0
    """When it may be asked again, as it said itself with Retry-After."""
    rests_until: float = 0.0
    """Until when others are asked in its place."""
    is_out: bool = False
    """Whether it could not be reached the last time."""


class Client:
    """Sends requests to one or several servers that do the same. May be used by many threads at once."""

    def __init__(
        self,
        reward: str,
        options: ServerOptions,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the token and check the addresses; nothing is sent yet. `reward` is what messages call the client.

        Raises:
            ConfigError: An address is none, or the environment variable of the token is not set.
        """
        self._reward = reward
        self._servers = [_Server(_check_url(reward, url)) for url in options.url]
        self._token = read_token(f"the reward {reward!r}: token_env", options.token_env)
        self._timeout, self._retries = options.timeout, options.retries
        self._sleep, self._clock = sleep, clock
        self._turn = 0
        self._given_up = False
        self._lock = threading.Lock()  # guards the four above it, and the servers
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {self._token}"} if self._token else {},
            timeout=httpx2.Timeout(self._timeout, connect=min(self._timeout, _CONNECT)),
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def greet(self, path: str) -> list[Greeting]:
        """Ask every server once, without retries; return what those said that are up and not too busy.

        Raises:
            ConfigError: A server wants a token, or another one.
            RewardError: No server can be reached.
        """
        greetings: list[Greeting] = []
        troubles: list[_Trouble] = []
        for server in self._servers:
            answer = self._ask(server, "GET", path, b"")
            if isinstance(answer, _Trouble):
                troubles.append(answer)
                continue
            if answer.status_code in (401, 403):
                how = "does not take the token" if self._token else "wants a token: name its variable with token_env"
                raise ConfigError(f"the reward {self._reward!r}: {server.url} {how} ({self._words(answer)})")
            greetings.append(Greeting(server.url, answer.status_code, self._hidden(answer)))
        if not greetings and not any(trouble.reached for trouble in troubles):
            raise RewardError(f"the reward {self._reward!r}: {'; '.join(trouble.text for trouble in troubles)}")
        return greetings

    def post(self, path: str, body: bytes) -> bytes:
        """Send `body`, a JSON document, to a server that is up, and return its answer.

        Raises:
            RewardError: There is none, whatever the reason; the message names the server and never shows the token.
        """
        tries = 1 if self._given_up else self._retries + len(self._servers)
        trouble = _Trouble("", again=False, reached=False)
        pauses = 0
        for number in range(1, tries + 1):
            server, pause = self._choose(pauses)
            if pause > max(self._timeout, _LONGEST_PAUSE):
                raise RewardError(f"{server.url} asks to come back in {pause:.0f} s, which is too long to wait")
            if pause > 0:
                self._sleep(pause)
                pauses += 1
            answer = self._ask(server, "POST", path, body)
            if not isinstance(answer, _Trouble) and answer.is_success:
                return self._hidden(answer)
            trouble = answer if isinstance(answer, _Trouble) else self._refusal(server, answer)
            if not trouble.again:
                raise RewardError(trouble.text)
            trouble = trouble._replace(text=f"{trouble.text} ({number} tries)" if number > 1 else trouble.text)
        self._given_up = not trouble.reached
        raise RewardError(trouble.text)

    def _choose(self, pauses: int) -> tuple[_Server, float]:
        """Return whose turn it is, and the seconds to wait before asking, after `pauses` pauses of this request."""
        with self._lock:
            now = self._clock()
            self._turn = (self._turn + 1) % len(self._servers)
            in_turn = self._servers[self._turn :] + self._servers[: self._turn]
            for server in in_turn:
                if server.rests_until <= now:
                    return server, 0.0
            server = min(in_turn, key=lambda server: server.rests_until)
            pause = 0.0 if self._given_up else _pause(pauses)
            return server, max(pause, server.not_before - now)

    def _ask(self, server: _Server, method: str, path: str, body: bytes) -> "httpx2.Response | _Trouble":
        """Send a request once and take note of how the server is."""
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            response = self._http.request(method, f"{server.url}{path}", content=body or None, headers=headers)
        except httpx2.ConnectTimeout:
            return self._out(server, "cannot be reached: connecting took too long", again=True)
        except httpx2.TimeoutException:
            return self._out(server, f"gave no answer within {self._timeout:g} s", again=False)
        except httpx2.TransportError as error:
            return self._out(server, f"cannot be reached ({error or type(error).__name__})", again=True)
        except httpx2.RequestError as error:
            return _Trouble(self._hide(f"{server.url} sent what cannot be read ({error})"), again=False, reached=True)
        busy = response.status_code == 429 or response.status_code >= 500
        with self._lock:
            now = self._clock()
            back, server.is_out, self._given_up = server.is_out, False, False
            server.not_before = now + _retry_after(response) if busy else 0.0
            server.rests_until = max(server.not_before, now + _FIRST_PAUSE) if busy else 0.0
        if back:
            _log.warning("the reward %r: %s answers again", self._reward, server.url)
        return self._refusal(server, response) if busy else response

    def _out(self, server: _Server, text: str, *, again: bool) -> _Trouble:
        """Leave a server out for a while, and say so the first time."""
        with self._lock:
            server.rests_until = self._clock() + _LEFT_OUT
            known, server.is_out = server.is_out, True
        trouble = _Trouble(self._hide(f"{server.url} {text}"), again=again, reached=False)
        if not known:
            others = f"; the others are asked for {_LEFT_OUT:g} s" if len(self._servers) > 1 else ""
            _log.warning("the reward %r: %s%s", self._reward, trouble.text, others)
        return trouble

    def _refusal(self, server: _Server, response: httpx2.Response) -> _Trouble:
        busy = response.status_code == 429 or response.status_code >= 500
        text = f"{server.url} answered {response.status_code}: {self._words(response)}"
        return _Trouble(text, again=busy, reached=True)

    def _words(self, response: httpx2.Response) -> str:
        """Return what a server said about an error: the message in its JSON, or the beginning of its text."""
        if response.is_redirect:
            return self._hide(f"it has moved to {response.headers.get('Location', 'nowhere')}; give that address")
        text = self._hide(response.text)  # before it is cut short, or the beginning of a token would be left
        try:
            error = json.loads(text)["error"]
            text = ": ".join(str(error[key]) for key in ("field", "message") if error.get(key))
        except (ValueError, TypeError, KeyError, AttributeError):  # not of that form: its plain words will do
            pass
        return text[:_SHOWN] or response.reason_phrase

    def _hide(self, text: str) -> str:
        return text.replace(self._token, "***") if self._token else text

    def _hidden(self, response: httpx2.Response) -> bytes:
        """Return a body without the token, for parts of it come to stand in messages."""
        return response.content.replace(self._token.encode(), b"***") if self._token else response.content


def side_by_side(call: Callable[[T], U], items: Sequence[T], *, limit: int) -> list[U]:
    """Call on every item, at most `limit` at once, and return the results in the order of the items.

    The threads end with the call. They are daemons, so a request that hangs holds up no program's end.
    """
    with ThreadPool(min(limit, len(items))) as pool:
        return pool.map(call, items, chunksize=1)


def _pause(pauses: int) -> float:
    """Return the seconds to wait after as many pauses: twice as long every time, less up to half by chance."""
    chance = random.SystemRandom().uniform(0.5, 1.0)  # not the global generator, whose state may be another's
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**pauses) * chance


def _retry_after(response: httpx2.Response) -> float:
    """Return the seconds that a server asks to wait: a number or a date in its header, 0 if it does not."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    # a date without a zone is in UTC, as all dates of HTTP are
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _check_url(reward: str, text: str) -> str:
    """Return an address without the stroke at its end."""
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment or (url.port or 0) > 65535:
        raise ConfigError(f"the reward {reward!r}: url must be like http://127.0.0.1:8000, got {text!r}")
    if url.userinfo:
        raise ConfigError(
            f"the reward {reward!r}: the url of {url.host} has a password in it, which would end up in resolved.json. "
            f"Put it into an environment variable and name that with token_env"
        )
    return text.rstrip("/")


def read_token(option: str, variable: str) -> str:
    """Return what an environment variable holds; "" without one. Messages name the `option` that names it.

    Raises:
        ConfigError: It is not set, or holds no token.
    """
    if not variable:
        return ""
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(f"{option} names {variable!r}, which is not set or empty")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(f"{option} names {variable!r}, which holds no token: there are spaces or odd signs in it")
    if len(token) < _SHORTEST_TOKEN:
        raise ConfigError(
            f"{option} names {variable!r}, which holds less than {_SHORTEST_TOKEN} letters: that can be guessed, and "
            f"cannot be kept out of messages. Take a longer token, or none"
        )
    return token
