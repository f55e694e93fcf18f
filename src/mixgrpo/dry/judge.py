"""A judge on this machine that speaks OpenAI's chat completions: it answers in the form that the reward reads.

Its scores follow from the bytes of the picture alone, so that pictures differ; they mean nothing.
"""

import json
import re
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, cast

from mixgrpo.errors import ConfigError, RewardError
from mixgrpo.rewards.judging import AnswerReader
from mixgrpo.rewards.options import VlmOptions

_JSON = "json:"
_PARTS = 997
"""A picture's bytes say which of so many equal parts of the range its score is in."""
_ALPHABET = [chr(code) for code in range(32, 127)]


class StandInJudge:
    """Makes up the answers of a judge whose settings are known."""

    def __init__(self, options: VlmOptions, name: str) -> None:
        """Find a form of answer that the reward `name` reads.

        Raises:
            ConfigError: if none can be made up for `parse`.
        """
        self._options = options
        self._reader = AnswerReader(options.parse, *options.score_range)
        self._reader.check(logprobs=options.logprobs)
        self._before, self._after = ("", "") if options.parse.startswith(_JSON) else example(options.parse)
        try:
            self._decimals = next(places for places in (3, 2, 1, 0) if self._reads(places))
        except StopIteration:
            raise ConfigError(
                f"the reward {name!r}: the dry run cannot make up an answer that options.parse {options.parse!r} finds "
                "a score in; leave this reward out of the dry run, or compare parse with what the judge answers"
            ) from None

    def answer(self, picture: bytes) -> tuple[str, str, str]:
        """Return the answer about a picture: what comes before the score, the score, and what comes after."""
        return self._words(self._value(zlib.crc32(picture) % _PARTS / _PARTS, self._decimals))

    def completion(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request of POST /chat/completions."""
        content = request["messages"][0]["content"]
        picture = next(part["image_url"]["url"] for part in content if part["type"] == "image_url").encode()
        before, score, after = self.answer(picture)
        choice: dict[str, Any] = {"message": {"content": f"{before}{score}{after}"}, "finish_reason": "stop"}
        if request.get("logprobs"):
            choice["logprobs"] = {"content": [_token(text) for text in (before, score, after) if text]}
        return {"choices": [choice]}

    def _value(self, share: float, decimals: int) -> str:
        low, high = self._options.score_range
        value = low + share * (high - low)
        return f"{value:.{decimals}f}" if decimals and not self._options.logprobs else f"{round(value)}"

    def _words(self, score: str) -> tuple[str, str, str]:
        if self._options.parse.startswith(_JSON):
            name = json.dumps(self._options.parse.removeprefix(_JSON))
            return f"{{{name}: ", score, "}"
        return self._before, score, self._after

    def _reads(self, decimals: int) -> bool:
        """Say whether the reward reads several scores with so many decimals as they are written."""
        for share in (0.0, 0.37, 0.81):
            score = self._value(share, decimals)
            try:
                if self._reader.read("".join(self._words(score))) != float(score):
                    return False
            except RewardError:
                return False
        return True


def example(pattern: str) -> tuple[str, str]:
    """Return what may stand before and after the one group of a regular expression, for text that it finds."""
    before, after = _parts(re._parser.parse(pattern))  # pyright: ignore[reportAttributeAccessIssue]
    return before, after or ""


def _parts(items: Iterable[Any]) -> tuple[str, str | None]:
    """Return the shortest text that fits, cut at the group; None in place of what follows if it is not among them."""
    before, after = "", None
    for operation, argument in items:
        start, rest = _part(str(operation), argument)
        if after is None:
            before, after = before + start, rest
        else:
            after += start + (rest or "")
    return before, after


def _part(operation: str, argument: Any) -> tuple[str, str | None]:
    match operation:
        case "LITERAL":
            return chr(argument), None
        case "NOT_LITERAL":
            return next(letter for letter in _ALPHABET if ord(letter) != argument), None
        case "ANY":
            return " ", None
        case "IN":
            return next((letter for letter in _ALPHABET if _is_in(letter, argument)), " "), None
        case "SUBPATTERN":
            return ("", "") if argument[0] == 1 else _parts(argument[3])
        case "BRANCH":
            branches = [_parts(branch) for branch in argument[1]]
            return next((branch for branch in branches if branch[1] is not None), branches[0])
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, _, inner = argument
            start, rest = _parts(inner)
            return (start, rest) if rest is not None else (start * least, None)
        case "ATOMIC_GROUP":
            return _parts(argument)
        case _:  # places and looks ahead or behind take no text
            return "", None


def _is_in(letter: str, choices: Iterable[Any]) -> bool:
    negated, found = False, False
    for operation, argument in choices:
        match str(operation):
            case "NEGATE":
                negated = True
            case "LITERAL":
                found |= ord(letter) == argument
            case "RANGE":
                found |= argument[0] <= ord(letter) <= argument[1]
            case "CATEGORY":
                found |= re.fullmatch(_CATEGORIES[str(argument)], letter) is not None
            case _:
                pass
    return found != negated


_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}


def _token(text: str) -> dict[str, Any]:
    """Return a token as if nothing but itself had been weighed in its place."""
    return {"token": text, "logprob": 0.0, "top_logprobs": [{"token": text, "logprob": 0.0}]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, judge: StandInJudge, model: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.judge, self.model = judge, model

    def server_bind(self) -> None:
        """Bind without asking a name server what the host is called, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    @property
    def _owner(self) -> _Server:
        return cast("_Server", self.server)

    def do_GET(self) -> None:
        """Answer GET /models."""
        self._say({"data": [{"id": self._owner.model}]})

    def do_POST(self) -> None:
        """Answer POST /chat/completions."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._say(self._owner.judge.completion(request))

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def _say(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def judging(options: VlmOptions, name: str) -> Iterator[str]:
    """Serve a stand-in judge and yield its address.

    Raises:
        ConfigError: see `StandInJudge`.
    """
    server = _Server(StandInJudge(options, name), options.model)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    """Let a server answer meanwhile, in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
