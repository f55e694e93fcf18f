"""What a run reports while it runs: rows of `metrics.jsonl`, and how far the present phase is."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mixgrpo.errors import CheckpointError


class MetricSink(Protocol):
    """Something that is told what happens in a run."""

    def record(self, row: Mapping[str, Any]) -> None:
        """Take a row; `row["kind"]` is start, train, eval or end."""
        ...

    def progress(self, phase: str, done: int, total: int) -> None:
        """Take note that `phase` is at `done` of `total`."""
        ...

    def close(self) -> None:
        """Let go of files and of the terminal."""
        ...


class Sinks:
    """Several sinks that are told the same."""

    def __init__(self, sinks: Iterable[MetricSink]) -> None:
        self._sinks = tuple(sinks)

    def record(self, row: Mapping[str, Any]) -> None:
        """Pass the row on."""
        for sink in self._sinks:
            sink.record(row)

    def progress(self, phase: str, done: int, total: int) -> None:
        """Pass the progress on."""
        for sink in self._sinks:
            sink.progress(phase, done, total)

    def close(self) -> None:
        """Close all of them."""
        for sink in self._sinks:
            sink.close()


class JsonlSink:
    """A file of one JSON object a line, complete up to the last row at any moment.

    Numbers that are not finite become null, because JSON has no word for them.
    """

    def __init__(self, path: Path, *, keep_before: int | None = None) -> None:
        """Start a new file, or go on with one.

        Args:
            path: the file.
            keep_before: the iteration that a resumed run starts with. Rows of that iteration and later ones are from
                work that is done again, so they are taken out; so is a last line that was cut short.

        Raises:
            CheckpointError: if a new run would write over the file of an earlier one.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if keep_before is not None:
            _cut_back(path, keep_before)
        elif path.exists():
            raise CheckpointError(f"{path} is there already: choose a new folder, or resume the run that wrote it")
        self._file = path.open("a", encoding="utf-8")

    def record(self, row: Mapping[str, Any]) -> None:
        """Append a row and hand it to the operating system at once."""
        self._file.write(json.dumps(_finite(row), allow_nan=False) + "\n")
        self._file.flush()

    def progress(self, phase: str, done: int, total: int) -> None:
        """Do nothing: only what is done is written."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cut_back(path: Path, keep_before: int) -> None:
    """Rewrite `path` without the rows that a run resumed at `keep_before` will write again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _is_before(line, keep_before)]
    part = path.with_name(path.name + ".part")
    part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    part.replace(path)


def _is_before(line: str, iteration: int) -> bool:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:  # the process died while it wrote this line
        return False
    if row["kind"] == "start":
        return row.get("resumed_from") is None or row["resumed_from"] < iteration
    return row["kind"] != "end" and row["iteration"] < iteration


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(inner) for inner in value]
    return value
