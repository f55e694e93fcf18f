"""Where the time of an iteration goes, and the wish to stop."""

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Clock:
    """Sums wall seconds by name. On a GPU, calls return before they are done, so only whole phases mean anything."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Return the sums and start again."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


class Interrupted(BaseException):
    """Somebody asked the run to stop; raised at a place where nothing is half done."""


class StopRequest:
    """Turns SIGINT and SIGTERM into a flag that the loop looks at; a second signal ends the process at once."""

    def __init__(self) -> None:
        """Start without a request."""
        self.requested = False

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.requested:
            raise Interrupted

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen inside the block. Only the main thread of a program can; elsewhere this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)
