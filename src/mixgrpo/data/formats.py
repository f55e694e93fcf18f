"""Reading the lines of a prompt source: text, JSON, JSON Lines, CSV, or a dataset of the Hugging Face hub.

Every mistake names the source, the line and, where there is one, the column. Lines count from 1; a dataset's rows and
a list's entries from 0, as in `dataset[0]`.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from mixgrpo.errors import ConfigError, MissingExtraError

HUB = "hub:"
"""What a source on the hub begins with."""

_HUB_SPLIT = re.compile(r"hub:([^\s:/]+/[^\s:/]+)(?::(.+))?")
_HUB_FILE = re.compile(r"hub:([^\s:/]+/[^\s:/]+)/([^\s:]+\.\w+)")
_DEFAULT_SPLIT = "train"
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
NEGATIVE = "negative_prompt"
"""Column of what guidance leads a prompt away from."""
_CONDITIONS = frozenset(
    {"image", "images", "mask", "mask_image"}
    | {
        f"{kind}_image{plural}"
        for kind in ("source", "input", "init", "original", "reference", "condition", "conditioning", "control")
        for plural in ("", "s")
    }
)
"""Columns that a model would have to be shown. A name that only contains "image", such as image_id, is none."""
_KINDS = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}


class Row(NamedTuple):
    """One line of a source."""

    where: str
    """Source and line, for messages."""
    text: str
    """The prompt as it is written there; empty where the line is."""
    columns: dict[str, Any]
    """What else the line says."""


def bundled_prompts() -> list[str]:
    """Return the names of the prompt files that come with the package."""
    folder = resources.files("mixgrpo") / "assets" / "prompts"
    return sorted(entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt"))


def hub_file(source: str) -> tuple[str, str] | None:
    """Return the dataset and the file that a source of the form hub:owner/name/FILE names."""
    found = _HUB_FILE.fullmatch(source)
    return None if found is None else (found[1], found[2])


def read_rows(source: str, column: str) -> Iterator[Row]:
    """Yield the lines of a source, empty ones too; `column` names the prompt where a line has several values.

    Raises:
        ConfigError: if there is no such source, or it is not of the form that its name promises.
        MissingExtraError: if it is on the hub and the package `datasets` is not installed.
    """
    if (file := hub_file(source)) is not None:
        return _file_rows(_download(source, *file), source, column)
    if source.startswith(HUB):
        return _hub_rows(source, column)
    if source in bundled_prompts():
        file = resources.files("mixgrpo") / "assets" / "prompts" / f"{source}.txt"
        return _text_rows(file.read_text(encoding="utf-8"), source)
    path = Path(source)
    if not path.is_file():
        raise ConfigError(
            f"prompt file {source!r} is not a file, nor one that comes with the package "
            f"({', '.join(bundled_prompts())}), nor hub:owner/name"
        )
    return _file_rows(path, source, column)


def _file_rows(path: Path, source: str, column: str) -> Iterator[Row]:
    match path.suffix.lower():
        case "" | ".txt":
            return _text_rows(_read_text(path), source)
        case ".json":
            return _list_rows(_read_text(path), source, column)
        case ".jsonl":
            return _json_rows(_read_text(path), source, column)
        case ".csv":
            return _csv_rows(_read_text(path), source, column)
        case suffix:
            raise ConfigError(
                f"prompt file {source!r} ends in {suffix}; it must be .txt (a prompt a line), .json (a list), "
                ".jsonl (an object a line) or .csv (with a header row)"
            )


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"prompt file {str(path)!r} cannot be read: {error.strerror}") from error
    if data.startswith(_BYTE_ORDER_MARKS):
        raise ConfigError(
            f"{path}, line 1: begins with a byte order mark (BOM), which would become part of the first prompt or "
            "column name. Save it as UTF-8 without one; spreadsheets write one for 'CSV UTF-8'"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: not UTF-8 text ({error.reason}: byte 0x{data[error.start]:02x}). Save it as UTF-8"
        ) from error


def _text_rows(text: str, source: str) -> Iterator[Row]:
    """Yield every line but comments, without the white space around it."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip().startswith("#"):
            yield Row(f"{source}, line {number}", line.strip(), {})


def _list_rows(text: str, source: str, column: str) -> Iterator[Row]:
    """Yield the entries of a JSON list: prompts, or objects."""
    try:
        entries = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        hint = ". Objects line by line are JSON Lines: let its name end in .jsonl" if error.msg == "Extra data" else ""
        raise ConfigError(
            f"{source}, line {error.lineno}: not JSON: {error.msg} (character {error.colno}){hint}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    if not isinstance(entries, list):
        raise ConfigError(f"{source}: holds {_kind(entries)}, not a list of prompts or of objects")
    for number, entry in enumerate(entries):
        where = f"{source}, entry {number}"
        if not isinstance(entry, str | dict):
            raise ConfigError(f"{where}: is {_kind(entry)}, neither a prompt nor an object with {column!r}")
        yield _make_row(where, {column: entry} if isinstance(entry, str) else entry, column)


def _json_rows(text: str, source: str, column: str) -> Iterator[Row]:
    # Only \n ends a line: str.splitlines would cut at characters that JSON allows inside a text.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        where = f"{source}, line {number}"
        if not line.strip():
            yield Row(where, "", {})
            continue
        try:
            values = json.loads(line, object_pairs_hook=_without_repeats)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where}: not JSON: {error.msg} (character {error.colno})") from error
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f'{where}: holds {_kind(values)}, not an object such as {{"{column}": "a red fox"}}')
        yield _make_row(where, values, column)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"column {twice!r} is there twice")
    return values


def _csv_rows(text: str, source: str, column: str) -> Iterator[Row]:
    header: list[str] | None = None
    for number, fields in _csv_records(text, source):
        where = f"{source}, line {number}"
        if header is None:
            header = fields
            _check_header(header, where, column)
        elif not fields:
            yield Row(where, "", {})
        elif len(fields) != len(header):
            raise ConfigError(
                f"{where}: has {_fields(len(fields))}, but the header has {len(header)} ({', '.join(header)}). "
                'A text with a comma in it needs double quotes: "red, blue"'
            )
        else:
            yield _make_row(where, dict(zip(header, fields, strict=True)), column)


def _csv_records(text: str, source: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record with the number of its first line; a blank line is a record without fields."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        for fields in reader:
            yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{source}, line {number}: not CSV: {error}") from error


def _check_header(header: list[str], where: str, column: str) -> None:
    if twice := [name for name in header if header.count(name) > 1]:
        raise ConfigError(f"{where}: the header has the column {twice[0]!r} twice")
    if column not in header:
        raise ConfigError(f"{where}: {_no_column(header, column)}. The first line must name the columns")


def _download(source: str, dataset: str, name: str) -> Path:
    """Return a file of a dataset on the hub, from the hub's cache if it is there."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - only such sources need it
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError  # noqa: PLC0415

    try:
        return Path(hf_hub_download(dataset, name, repo_type="dataset"))
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"prompt source {source!r}: the hub has no dataset {dataset} that this account can see"
        ) from error
    except (EntryNotFoundError, HFValidationError, OSError) as error:  # the first also where the hub is out of reach
        said = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(
            f"prompt source {source!r} cannot be downloaded: {said}. Where there is a network: hf download --repo-type "
            f"dataset {dataset} {name} --local-dir FOLDER; then name the file in that folder"
        ) from error


def _hub_rows(source: str, column: str) -> Iterator[Row]:
    found = _HUB_SPLIT.fullmatch(source)
    if found is None:
        raise ConfigError(
            f"prompt source {source!r} must be of the form hub:owner/name, hub:owner/name:split or, for one file of a "
            "dataset, hub:owner/name/file.json"
        )
    spec = find_spec("datasets")
    if spec is None or spec.origin is None:  # a folder called datasets in the working directory has no origin
        raise MissingExtraError("reading prompts from the hub", "datasets", "datasets")
    datasets = import_module("datasets")
    name, split = found[1], found[2] or _DEFAULT_SPLIT
    try:
        dataset = datasets.load_dataset(name, split=split)
    # RuntimeError: the dataset is a script, which is never run.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(f"prompt source {source!r} cannot be read: {error}") from error
    for number, values in enumerate(dataset):
        yield _make_row(f"{source}, row {number}", values, column)


def _make_row(where: str, values: Mapping[str, Any], column: str) -> Row:
    """Check the values of a line and divide them into prompt and columns."""
    if column not in values:
        raise ConfigError(f"{where}: {_no_column(values, column)}. The setting prompts.column says which is the prompt")
    text = values[column]
    _check_text(where, column, text, "a prompt")
    columns = {name: value for name, value in values.items() if name != column}
    for name, value in columns.items():
        if _is_empty(value):
            continue
        if name == NEGATIVE:
            _check_text(where, name, value, "a negative prompt")
        if name in _CONDITIONS:
            raise ConfigError(
                f"{where}, column {name!r}: image conditions are not supported yet. Take the column out, or, if only "
                "your rewards are to read it, give it another name"
            )
    return Row(where, text, columns)


def _check_text(where: str, column: str, value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{where}, column {column!r}: {what} must be a text, but this is {_kind(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}, column {column!r}: is no valid text ({error.reason})") from error


def _is_empty(value: object) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | dict) and not value)


def _no_column(names: Mapping[str, Any] | list[str], column: str) -> str:
    return f"there is no column {column!r}, only {', '.join(map(repr, names)) or 'nothing'}"


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "a text"
    return "nothing (null)" if value is None else _KINDS.get(type(value), type(value).__name__)


def _fields(number: int) -> str:
    return "1 value" if number == 1 else f"{number} values"
