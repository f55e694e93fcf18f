"""A server for rewards: protocol 1 of docs/rewards.md over Python's own http.server.

Every reward has one thread, so it is called by one request at a time, and the faults of a reward are dealt with as in
training, for both are done by `Scorer`. Requests wait in threads of their own; beyond `Limits.requests` they are told
to come back.
"""

import hmac
import json
import logging
import math
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import NamedTuple, cast

from pydantic import ValidationError
from torch import Tensor

from mixgrpo import __version__
from mixgrpo.errors import RewardError
from mixgrpo.rewards.base import Reward
from mixgrpo.rewards.scorer import Scorer, ScoreTable
from mixgrpo.rewards.wire import VERSION, Fault, Health, ScoreReply, ScoreRequest, SentPrompt, unpack_images

_PIECE = 2**16  # bytes read at a time of a body that nobody wants
_UNWANTED = 4
"""How many times the size limit is read of a body that is too large: a client that is still sending reads no answer."""

_SHOWN_FAILURES = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server bears."""

    body: int = 64 * 2**20
    """Bytes of a request."""
    requests: int = 32
    """Requests in progress; more are answered with 503."""
    seconds: float = 300.0
    """Seconds that scoring the images of a request may take, once it is their turn."""
    closing: float = 10.0
    """Seconds that closing waits for requests in progress."""


class _Answer(NamedTuple):
    status: int
    content: Mapping[str, object]
    headers: Mapping[str, str] = {}


class RewardServer(ThreadingHTTPServer):
    """Serves rewards by name until it is closed. Listens at once; `serve_forever` answers."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, host: str, port: int, rewards: Mapping[str, Reward], *, token: str = "", limits: Limits | None = None
    ) -> None:
        """Listen on a host and a port (0: any that is free); clients must send the `token`, if there is one.

        Raises:
            OSError: The address cannot be listened on.
        """
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        self.rewards, self.limits = tuple(rewards), limits or Limits()
        self._token = token
        self._scorer = Scorer(rewards, timeout=self.limits.seconds, workers=len(rewards))
        self._inside = 0
        self._changed = threading.Condition()  # guards the count above

    def server_bind(self) -> None:
        """Bind without asking a name server what the host is called, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where it is reached from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.server_name, self.server_name)
        return f"http://[{host}]:{self.server_port}" if ":" in host else f"http://{host}:{self.server_port}"

    def close(self) -> None:
        """Stop listening, and end when the requests in progress are answered, or when that takes too long."""
        self.server_close()
        with self._changed:
            self._changed.wait_for(lambda: self._inside == 0, self.limits.closing)
        self._scorer.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Write a line where a client left before its answer, all there is to know where it is the server's fault."""
        if isinstance(sys.exc_info()[1], ConnectionError):
            log.info("a client left before its answer")
        else:
            log.exception("a request could not be answered")

    def enter(self) -> bool:
        """Take a place for a request; False if there is none."""
        with self._changed:
            is_free = self._inside < self.limits.requests
            self._inside += is_free
            return is_free

    def leave(self) -> None:
        """Give the place back."""
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def knows(self, authorization: str) -> bool:
        """Say whether a client may ask."""
        return not self._token or hmac.compare_digest(authorization.encode(), f"Bearer {self._token}".encode())

    def health(self) -> Mapping[str, object]:
        """Answer GET /health."""
        return Health(version=VERSION, rewards=list(self.rewards), server=f"mixgrpo {__version__}").model_dump()

    def score(self, body: bytes) -> _Answer:
        """Answer POST /score."""
        try:
            request = ScoreRequest.model_validate_json(body)
        except ValidationError as error:
            return _refuse(400, _fault_of(error))
        if fault := self._check(request):
            return _refuse(404 if fault.field == "reward" else 400, fault)
        images = unpack_images(request.images)
        if isinstance(images, Fault):
            return _refuse(400, images)
        prompts = [
            SentPrompt(prompt, columns)
            for prompt, columns in zip(request.prompts, request.columns or [{}] * len(request.prompts), strict=True)
        ]
        return self._ask(request.reward or self.rewards[0], images, prompts)

    def _check(self, request: ScoreRequest) -> Fault | None:
        count = len(request.images)
        if len(request.prompts) != count:
            return Fault("prompts", f"there are {len(request.prompts)} for {count} images")
        if request.columns is not None and len(request.columns) != count:
            return Fault("columns", f"there are {len(request.columns)} for {count} images")
        there = ", ".join(self.rewards)
        if request.reward and request.reward not in self.rewards:
            return Fault("reward", f"there is no {request.reward!r} here; there are: {there}")
        if not request.reward and len(self.rewards) > 1:
            return Fault("reward", f"is missing; there are: {there}")
        return None

    def _ask(self, name: str, images: Tensor, prompts: Sequence[str]) -> _Answer:
        started = time.monotonic()
        try:
            table = self._scorer.submit(images, prompts, rewards=[name]).result()
        except RewardError as error:  # the reward is wrong as such: no try will help
            log.error("%s: %s", name, error)
            return _refuse(422, Fault("reward", str(error)))
        for text in table.failures[name][:_SHOWN_FAILURES]:
            log.warning("%s: %s", name, text)
        seconds, failed = time.monotonic() - started, table.failed[name]
        log.info("%s: %d images in %.2f s, %d of them without a score", name, len(images), seconds, failed)
        return _Answer(200, _reply(name, table))


class _Handler(BaseHTTPRequestHandler):
    """Reads requests and writes answers, all of them JSON."""

    protocol_version = "HTTP/1.1"
    server_version = f"mixgrpo/{__version__}"
    timeout = 60  # seconds without a byte
    disable_nagle_algorithm = True

    @property
    def _owner(self) -> RewardServer:
        return cast("RewardServer", self.server)

    def do_GET(self) -> None:
        """Answer GET /health."""
        self._write(self._refusal("/health") or _Answer(200, self._owner.health()))

    def do_POST(self) -> None:
        """Answer POST /score."""
        has_place = self._owner.enter()
        try:
            self._write(self._post(has_place))
        finally:
            if has_place:
                self._owner.leave()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Say in JSON, too, what is no HTTP."""
        self.close_connection = True
        self._write(_refuse(code, Fault("request", message or self.responses[code][0])))

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: what is worth a line is said where it happens."""
        log.debug(format, *args)

    def _post(self, has_place: bool) -> _Answer:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 15:
            self.close_connection = True
            return _refuse(411, Fault("Content-Length", "is missing: say how many bytes the body has"))
        refusal = self._refusal("/score") or self._burden(int(length), has_place)
        if refusal:
            self._discard(int(length))
            return refusal
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return _refuse(400, Fault("body", f"ended after {len(body)} of {length} bytes"))
        return self._owner.score(body)

    def _refusal(self, path: str) -> _Answer | None:
        if not self._owner.knows(self.headers.get("Authorization", "")):
            fault = Fault("Authorization", "send the server's token: Authorization: Bearer TOKEN")
            return _refuse(401, fault, {"WWW-Authenticate": "Bearer"})
        if self.path != path:
            return _refuse(404, Fault("path", f"{self.command} {self.path!r}: there are GET /health and POST /score"))
        return None

    def _burden(self, length: int, has_place: bool) -> _Answer | None:
        limits = self._owner.limits
        if length > limits.body:
            return _refuse(
                413, Fault("body", f"has {length} bytes, more than {limits.body}; send fewer images at a time")
            )
        if not has_place:
            return _refuse(503, Fault("server", f"{limits.requests} requests are in progress"), {"Retry-After": "1"})
        return None

    def _discard(self, length: int) -> None:
        """Read what nobody wants, so that the client comes to reading the answer."""
        left = min(length, _UNWANTED * self._owner.limits.body)
        self.close_connection = left < length
        while left > 0 and (piece := self.rfile.read(min(left, _PIECE))):
            left -= len(piece)

    def _write(self, answer: _Answer) -> None:
        body = json.dumps(answer.content, allow_nan=False).encode()
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _refuse(status: int, fault: Fault, headers: Mapping[str, str] | None = None) -> _Answer:
    return _Answer(status, {"error": fault._asdict()}, headers or {})


def _fault_of(error: ValidationError) -> Fault:
    """Return the first thing that is wrong with a body, without a word of what it holds."""
    details = error.errors(include_url=False, include_input=False)[0]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in details["loc"])
    return Fault(field.removeprefix(".") or "body", details["msg"])


def _reply(name: str, table: ScoreTable) -> Mapping[str, object]:
    """Return what a reward said as protocol 1 says it."""
    details = {key.removeprefix(f"{name}/"): _numbers(figures) for key, figures in table.details.items()}
    failures = table.failures[name][:_SHOWN_FAILURES]
    return ScoreReply(scores=_numbers(table.values[name]), details=details, failures=failures).model_dump()


def _numbers(figures: Tensor) -> list[float | None]:
    return [figure if math.isfinite(figure) else None for figure in figures.tolist()]
