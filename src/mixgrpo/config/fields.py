"""What the schema says about its own fields: its sections, what a value may be, every setting's name."""

import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import Section

UNION_TAG = "type"
"""Key that says which member of a union of sections is meant."""

_OF_ITS_TYPE = frozenset({UNION_TAG, "clip_range", "kl_weight"})
"""Keys that say something else in every type: a likelihood's ratio moves on another scale than a softmax's, and the
divergence is that of two Gaussians or the squared distance of two velocities."""
_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "a text",
    "array": "a list",
    "object": "a table of keyword arguments",
}
_LIMITS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}


def variants(field: FieldInfo) -> dict[str, type[Section]]:
    """Return the sections that a field chooses from by their `type`, or nothing if it is no such field."""
    if get_origin(field.annotation) not in (Union, types.UnionType):
        return {}
    members: tuple[type[Section], ...] = get_args(field.annotation)
    return {member.model_fields[UNION_TAG].default: member for member in members}


def retyped(name: str, table: Mapping[str, Any], kind: object) -> dict[str, Any]:
    """Return a table of the section `name` as one of another type, with those of its settings that this has too."""
    field = Config.model_fields.get(name)
    member = variants(field).get(str(kind)) if field is not None else None
    keys = member.model_fields.keys() - _OF_ITS_TYPE if member is not None else ()
    return {key: value for key, value in table.items() if key in keys} | {UNION_TAG: kind}


def item_section(field: FieldInfo) -> type[Section] | None:
    """Return the section that a list field holds, or None if it is no list of sections."""
    if get_origin(field.annotation) is not tuple:
        return None
    inner = get_args(field.annotation)[0]
    return inner if isinstance(inner, type) and issubclass(inner, Section) else None


def section_of(field: FieldInfo | None) -> type[Section] | None:
    """Return the section that a field is, or None if it is no section."""
    annotation = field.annotation if field is not None else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def allowed_values(owner: type[Section], key: str) -> str:
    """Describe in words what a setting may be, from the JSON schema of its section."""
    schema = owner.model_json_schema()["properties"][key]
    if choices := schema.get("enum"):
        return "one of " + ", ".join(map(str, choices))
    bounds = [f"{word} {schema[limit]:g}" for limit, word in _LIMITS.items() if limit in schema]
    form = f" of the form {schema['pattern']}" if "pattern" in schema else ""
    return _KINDS.get(schema.get("type"), "a table") + form + (", " + " and ".join(bounds) if bounds else "")


def placeholder(field: FieldInfo) -> str:
    """Return the word that stands for a setting's value in the help."""
    annotation, origin = field.annotation, get_origin(field.annotation)
    if origin is Literal:
        return "|".join(map(str, get_args(annotation)))
    if origin is tuple:
        return "TEXT ..."
    names: dict[object, str] = {int: "INT", float: "NUMBER", bool: "true|false"}
    return names.get(annotation, "TEXT")


def known_settings() -> tuple[str, ...]:
    """Return the dotted name of every setting there is; items of lists have `N` for their number."""
    return tuple(dict.fromkeys(_walk(Config, "")))


def _walk(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        item, inner = item_section(field), section_of(field)
        if inner is not None:
            yield from _walk(inner, f"{prefix}{name}.")
        elif members := variants(field):
            for member in members.values():
                yield from _walk(member, f"{prefix}{name}.")
        elif item is not None:
            yield from _walk(item, f"{prefix}{name}.N.")
        else:
            yield prefix + name
