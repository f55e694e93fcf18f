"""What a user reads when a setting is wrong: its name, what was given, what is allowed, what was meant."""

import difflib
from collections.abc import Iterable, Sequence
from typing import cast

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mixgrpo.config.fields import UNION_TAG, allowed_values, item_section, known_settings, section_of, variants
from mixgrpo.config.schema import Config
from mixgrpo.config.sections import Section


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?' for the names nearest to a dotted name, or nothing if none is near."""
    names = list(dict.fromkeys(known))
    tail = given.rpartition(".")[2]
    tails = difflib.get_close_matches(tail, [name.rpartition(".")[2] for name in names], n=1, cutoff=0.75)
    near = (
        _nearest(given, [name for name in names if name.rpartition(".")[2] == tail], 0.0)
        or _nearest(given, names, 0.75)[:1]
        or _nearest(given, [name for name in names if name.rpartition(".")[2] in tails], 0.0)
        or _nearest(given, names, 0.5)
    )
    return f"; did you mean {' or '.join(near)}?" if near else ""


def explain(error: ValidationError, *, origin: str, overridden: Iterable[Sequence[str]] = ()) -> str:
    """Turn pydantic's findings into one message: a line for each mistake.

    Args:
        error: what pydantic found.
        origin: where the settings come from, as the user knows it.
        overridden: paths of the settings that were given on the command line instead.
    """
    given = {".".join(path) for path in overridden}
    lines = [_explain_one(details, given) for details in error.errors(include_url=False)]
    if len(lines) == 1:
        return f"{origin}: {lines[0]}"
    return "\n".join([f"{origin}: {len(lines)} mistakes", *(f"  {line}" for line in lines)])


def _explain_one(details: ErrorDetails, overridden: set[str]) -> str:
    name, owner, key = _locate(details["loc"])
    field = owner.model_fields.get(key)
    where = " (given on the command line)" if {name, f"{name}.{UNION_TAG}"} & overridden else ""
    kind, value = details["type"], details["input"]
    if kind == "value_error":
        return details["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"unknown setting {name}{_unknown_hint(name, owner)}"
    if kind == "missing":
        told = f": {field.description}" if field and field.description else ""
        return f"{name} is missing and has no default{told}"
    if kind == "union_tag_not_found":
        return f"{name}.{UNION_TAG} is missing; allowed: {_tags(field)}"
    if kind == "union_tag_invalid":
        tag = cast("dict[str, object]", value)[UNION_TAG]
        return f"{name}.{UNION_TAG} is {tag!r}{where}; allowed: {_tags(field)}"
    if kind == "too_short":
        return f"{name} is empty; give at least one"
    if field is None:
        return f"{name} is {_shown(value)}{where}; {details['msg'].lower()}"
    return f"{name} is {_shown(value)}{where}; allowed: {allowed_values(owner, key)}"


def _locate(loc: tuple[int | str, ...]) -> tuple[str, type[Section], str]:
    """Follow pydantic's location through the schema: the dotted name, the section it is in, its key there."""
    names: list[str] = []
    owner: type[Section] = Config
    inner: type[Section] | None = Config
    key = ""
    for part in loc:
        field = owner.model_fields.get(key)
        if inner is None and field is not None and part in variants(field):
            inner = variants(field)[str(part)]  # pydantic's name for the member, which no user wrote
            continue
        names.append(str(part))
        if isinstance(part, int):
            inner = item_section(field) if field is not None else None
        elif inner is not None:
            owner, key = inner, part
            inner = section_of(owner.model_fields.get(part))
    return ".".join(names), owner, key


def _unknown_hint(name: str, owner: type[Section]) -> str:
    """Say what an unknown setting may have been meant to be."""
    parent, _, key = name.rpartition(".")
    if UNION_TAG in owner.model_fields:
        tag = owner.model_fields[UNION_TAG].default
        homes = [t for t, other in variants(Config.model_fields[parent]).items() if key in other.model_fields]
        if homes:
            return f": it belongs to {parent}.{UNION_TAG} {' or '.join(map(repr, homes))}, but this is {tag!r}"
    siblings = [f"{parent}.{field}" if parent else field for field in owner.model_fields]
    near = _nearest(name, siblings, 0.8)
    hint = f"; did you mean {near[0]}?" if near else did_you_mean(name, known_settings())
    return hint or f"; allowed here: {', '.join(owner.model_fields)}"


def _nearest(given: str, names: Sequence[str], cutoff: float) -> list[str]:
    return difflib.get_close_matches(given, names, n=2, cutoff=cutoff)


def _tags(field: FieldInfo | None) -> str:
    return ", ".join(variants(field)) if field else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
