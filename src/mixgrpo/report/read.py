"""Reads a run folder into frozen dataclasses.

A folder that a crash left behind is readable: what is missing is written down in `Run.remarks`, which the report
shows. Only what no crash explains, such as a broken line in the middle of a file, is an error.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixgrpo.errors import CheckpointError, ConfigError
from mixgrpo.report.exported import Exported, read_exported
from mixgrpo.report.rows import Ending, EvalRow, JsonRow, Session, TrainRow, ending, eval_row, prompt_counts, train_row


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """The pictures of one evaluation, one per prompt; None where the file is missing."""

    iteration: int
    pictures: tuple[Path | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run folder."""

    path: Path
    config: Mapping[str, Any]
    """`resolved.json`, not validated: a run of an older version can still be reported."""
    sessions: tuple[Session, ...]
    train: tuple[TrainRow, ...]
    """By iteration, each iteration once."""
    evals: tuple[EvalRow, ...]
    """By iteration, each iteration once."""
    ending: Ending | None
    prompts: tuple[str, ...]
    sheets: tuple[Sheet, ...]
    best_checkpoint: str
    last_checkpoint: str
    export: Exported | None
    """What `export/` holds, if the run has been exported there."""
    remarks: tuple[str, ...]
    """What was missing or odd, in plain words."""

    @property
    def seconds(self) -> float:
        """Running time over all sessions, the pauses between them left out."""
        return sum(session.stop - session.start for session in self.sessions)

    def setting(self, path: str) -> Any:
        """Return a setting by its dotted name, or None where the config has none of that name."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def read_run(path: Path) -> Run:
    """Read the run folder `path`.

    Raises:
        CheckpointError: if the folder or its `metrics.jsonl` is missing, or a file in it is damaged.
        ConfigError: if `resolved.json` is damaged.
    """
    if not path.is_dir():
        raise CheckpointError(f"There is no run folder {path}. Give the folder that `mixgrpo train` made.")
    config = _read_config(path / "resolved.json")
    log = _read_metrics(path / "metrics.jsonl")
    prompts, sheets = _read_samples(path / "samples", log.remarks)
    return Run(
        path=path,
        config=config,
        sessions=tuple(log.sessions),
        train=tuple(log.train[key] for key in sorted(log.train)),
        evals=tuple(log.evals[key] for key in sorted(log.evals)),
        ending=log.ending,
        prompts=prompts,
        sheets=sheets,
        best_checkpoint=_pointer(path / "checkpoints" / "best.txt"),
        last_checkpoint=_pointer(path / "checkpoints" / "last.txt"),
        export=read_exported(path / "export"),
        remarks=tuple(log.remarks),
    )


@dataclass
class _Log:
    """What has been read of `metrics.jsonl` so far."""

    sessions: list[Session] = field(default_factory=list)
    train: dict[int, TrainRow] = field(default_factory=dict)
    evals: dict[int, EvalRow] = field(default_factory=dict)
    ending: Ending | None = None
    remarks: list[str] = field(default_factory=list)

    def add(self, row: JsonRow) -> None:
        """Take in one row."""
        match row.text("kind"):
            case "start":
                self._start(row)
            case "train":
                train = train_row(row, self._elapsed(row))
                self.train[train.iteration] = train
            case "eval":
                evaluation = eval_row(row, self._elapsed(row))
                self.evals[evaluation.iteration] = evaluation
            case "end":
                self._elapsed(row)
                self.ending = ending(row)
            case unknown:
                self.remarks.append(f"{row.where}: rows of kind {unknown!r} are not known and were left out.")

    def _start(self, row: JsonRow) -> None:
        resumed_from = row.optional_integer("resumed_from")
        # What a crashed session did after its last checkpoint is done again after the resume: the later rows count.
        first = resumed_from or 0
        lost = [iteration for iteration in self.train if iteration >= first]
        if lost:
            self.remarks.append(
                f"{_iterations(lost)} had been run but not saved when the run was resumed at {first}; "
                "they were run again, and the report shows the second time."
            )
        self.train = {key: value for key, value in self.train.items() if key < first}
        self.evals = {key: value for key, value in self.evals.items() if resumed_from is not None and key <= first}
        self.ending = None
        time = row.number("time")
        versions = row.plain_texts(frozenset({"kind"}))
        if "version" in versions:
            versions = {"mixgrpo": versions.pop("version"), **versions}
        parameters = row.integer("trained_parameters", 0)
        self.sessions.append(
            Session(
                start=time,
                stop=time,
                resumed_from=resumed_from,
                trained_parameters=parameters,
                versions=versions,
                prompts=prompt_counts(row),
            )
        )

    def _elapsed(self, row: JsonRow) -> float:
        time = row.number("time")
        if not self.sessions:
            # A log without a start row: the first row began before it was written.
            start = time - row.number("seconds", 0.0)
            self.sessions.append(Session(start=start, stop=start, resumed_from=None, trained_parameters=0, versions={}))
        *earlier, current = self.sessions
        # A clock that was set back must not make the running time shrink.
        current = replace(current, stop=max(current.stop, time))
        self.sessions[-1] = current
        return sum(session.stop - session.start for session in earlier) + current.stop - current.start


def _iterations(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"Iteration {low}" if low == high else f"Iterations {low} to {high}"


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}, so it is no run folder, or its run never started."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(_read_bytes(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text.") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: must hold one JSON object, the settings of the run.")
    return config


def _read_metrics(path: Path) -> _Log:
    log = _Log()
    lines = _read_bytes(path).split(b"\n")
    last = max((number for number, line in enumerate(lines, start=1) if line.strip()), default=0)
    for number, line in enumerate(lines[:last], start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if number == last:
                log.remarks.append(
                    f"The last line of {path.name} (line {number}) is cut off, as a crash leaves it; it was left out."
                )
                break
            raise CheckpointError(
                f"{where}: not a JSON object. A crash can only cut off the last line, so the file was damaged "
                "later; remove the line to report on the rest."
            ) from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{where}: must hold a JSON object, found {type(values).__name__}.")
        log.add(JsonRow(values, where))
    return log


def _read_samples(folder: Path, remarks: list[str]) -> tuple[tuple[str, ...], tuple[Sheet, ...]]:
    path = folder / "index.json"
    if not path.is_file():
        remarks.append("No pictures were kept: samples/index.json is missing.")
        return (), ()
    try:
        index = json.loads(_read_bytes(path))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text.") from error
    match index:
        case {"prompts": [*prompts], "sheets": [*rows]} if all(isinstance(prompt, str) for prompt in prompts):
            sheets = [_read_sheet(row, folder, where=f"{path}, sheet {n}") for n, row in enumerate(rows)]
        case _:
            raise CheckpointError(f'{path}: must hold "prompts", a list of strings, and "sheets", a list.')
    missing = sum(picture is None for sheet in sheets for picture in sheet.pictures[: len(prompts)])
    if missing:
        remarks.append(
            f"{missing} of the pictures that samples/index.json names {'is' if missing == 1 else 'are'} missing."
        )
    by_iteration = {sheet.iteration: sheet for sheet in sheets}
    return tuple(prompts), tuple(by_iteration[key] for key in sorted(by_iteration))


def _read_sheet(row: Any, folder: Path, *, where: str) -> Sheet:
    match row:
        case {"iteration": int(iteration), "files": [*files]} if all(isinstance(file, str) for file in files):
            return Sheet(iteration=iteration, pictures=tuple(_inside(folder, file) for file in files))
        case _:
            raise CheckpointError(f'{where}: must hold "iteration", a whole number, and "files", a list of names.')


def _inside(folder: Path, name: str) -> Path | None:
    """Return the picture's path, or None unless it is a file within `folder`.

    A report is made to be passed on, so a file from elsewhere on the disk must not end up in it.
    """
    path = (folder / name).resolve()
    return path if path.is_file() and path.is_relative_to(folder.resolve()) else None


def _pointer(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
