"""Servers on 127.0.0.1 that answer as a test says, and write down what they were asked."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

HEALTH = {"version": 1, "rewards": ["mine"], "server": "a test"}


class Clause(str):
    """A prompt with columns, as a reader of prompt files makes them."""

    columns: Mapping[str, object]

    def __new__(cls, text: str, **columns: object) -> "Clause":
        clause = super().__new__(cls, text)
        clause.columns = columns
        return clause


class Asked(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


class Said(NamedTuple):
    content: Any
    """Bytes are sent as they are, anything else as JSON."""
    status: int = 200
    headers: Mapping[str, str] = {}


@dataclass
class Served:
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    """What came by POST, in the order of coming."""
    at_once: int = 0
    """Most POST requests in progress at the same time."""


@contextmanager
def serving(post: Callable[[Asked], Said], *, get: Callable[[Asked], Said] | None = None) -> Iterator[Served]:
    """Answer POST with `post`; GET with `get`, else as a reward server does that has the reward `mine`."""
    served, inside, lock = Served(), [0], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say((get or (lambda _: Said(HEALTH)))(Asked("GET", self.path, dict(self.headers), None)))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = Asked("POST", self.path, dict(self.headers), body)
            with lock:
                served.asked.append(asked)
                inside[0] += 1
                served.at_once = max(served.at_once, inside[0])
            try:
                said = post(asked)
            finally:
                with lock:
                    inside[0] -= 1
            self._say(said)

        def _say(self, said: Said) -> None:
            content = said.content if isinstance(said.content, bytes) else json.dumps(said.content).encode()
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that has given up

    server = Server(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def in_turn(*said: Said) -> Callable[[Asked], Said]:
    """Answer with one after the other, the last for good."""
    left = list(said)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


def read_picture(text: str) -> np.ndarray:
    """Decode a file in base64 or a data URL: uint8 [H, W, 3]."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(text.rpartition(",")[2]))))


def grey_of(asked: Asked) -> list[int]:
    """Return the value of the first pixel of every image that was sent to a reward server."""
    return [int(read_picture(image)[0, 0, 0]) for image in asked.body["images"]]


def scores(values: Sequence[Any], **more: Any) -> Said:
    return Said({"scores": list(values), **more})
