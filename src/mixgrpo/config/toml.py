"""A config as TOML for people: every setting with its value, and above it what the schema says about it."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast, get_args, get_origin

from pydantic.fields import FieldInfo

from mixgrpo.config.fields import UNION_TAG, item_section, section_of, variants
from mixgrpo.config.schema import Config, Section

_WIDTH = 118


def config_toml(config: Config, heading: Sequence[str] = ()) -> str:
    """Return a config as TOML, complete and with comments; `load_config` reads it back to the same config.

    Args:
        config: the settings.
        heading: lines of the comment at the top.
    """
    top = [line for text in heading for line in _comment(text)]
    return "\n".join([*top, *([""] if top else []), *_section(config, "")]) + "\n"


def toml_value(value: object) -> str:
    """Return a value as TOML: a text, number, boolean, list, or a table on one line.

    Raises:
        TypeError: if it is something else.
    """
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, cast('Sequence[object]', value)))}]"
    if isinstance(value, Mapping):
        pairs = [f"{_key(key)} = {toml_value(inner)}" for key, inner in cast("Mapping[str, object]", value).items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _section(section: Section, path: str) -> Iterator[str]:
    """Yield the lines of a section: its own settings, then, as TOML demands, the tables in it."""
    tables: list[tuple[str, FieldInfo, Any]] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if section_of(field) or variants(field) or item_section(field):
            tables.append((f"{path}{name}", field, value))
            continue
        if name != UNION_TAG:
            yield from _comment(_explained(field))
        yield f"{name} = {toml_value(value)}"
    for name, field, value in tables:
        many = item_section(field) is not None
        for item in cast("Sequence[Section]", value) if many else [cast("Section", value)]:
            yield ""
            yield from _comment((type(item).__doc__ or "").partition("\n")[0])
            yield f"[[{name}]]" if many else f"[{name}]"
            yield from _section(item, f"{name}.")


def _explained(field: FieldInfo) -> str:
    text = (field.description or "").partition("\n\n")[0].replace("\n", " ")
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return f"{text} One of {', '.join(map(str, choices))}." if choices else text


def _comment(text: str) -> list[str]:
    return ["# " + line for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False)] or ["#"]


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)
