"""The command line's view of a config: one flag per setting, read by tyro, judged by the schema.

tyro reads every value as text and knows names, help and arity; what the text means is decided once, by the
schema, together with what the file says. So a mistake reads the same wherever it was made.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NoReturn, TypedDict, cast, get_args, get_origin

import tyro
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mixgrpo.config.fields import (
    UNION_TAG,
    item_section,
    known_settings,
    placeholder,
    retyped,
    section_of,
    variants,
)
from mixgrpo.config.messages import did_you_mean
from mixgrpo.config.schema import Config
from mixgrpo.config.sections import Section
from mixgrpo.errors import ConfigError

Path = tuple[str, ...]

_SECTIONS_OF_A_TYPE = tuple(name for name, field in Config.model_fields.items() if variants(field))


@dataclass(frozen=True, slots=True)
class Flag:
    """A setting that the command line may change."""

    path: Path
    """Keys from the outside in; items of a list by their number."""
    owner: type[Section]
    """Section that the setting belongs to."""
    field: FieldInfo
    """The setting in the schema; for a reward's option, the table of options."""
    default: object
    """What the file or the schema says, or PydanticUndefined."""

    @property
    def name(self) -> str:
        """The setting's dotted name."""
        return ".".join(self.path)

    @property
    def is_list(self) -> bool:
        """Whether the flag takes any number of values."""
        return get_origin(self.field.annotation) is tuple


def read_overrides(
    raw: Mapping[str, Any], args: Sequence[str], *, prog: str, about: str, own: Mapping[str, str]
) -> dict[Path, Any]:
    """Read the flags of a command line on top of what a file says.

    Args:
        raw: the file's content, not yet validated.
        args: the command line after the file's name.
        prog: how the command is called, for the help and the messages.
        about: what the command does, for the help.
        own: options of the command that are no settings, with what they do; they are read elsewhere.

    Returns:
        The value of each setting that was given, by path; text that is not what the setting wants stays text.

    Raises:
        ConfigError: if a flag is unknown or has no value.
    """
    args = [_with_underscores(arg) for arg in args]
    raw = _with_types(raw, _types_given(args))
    flags = {flag.path: flag for flag in flags_of(raw, args)}
    if not any(arg in ("-h", "--help") for arg in args):
        _check_flags(flags, args, prog, own)
    table = _typed_dict(Config, flags, ())
    lines = [about, "", *(f"{option}: {text}" for option, text in own.items())]
    given = tyro.cli(table, args=args, prog=prog, description="\n".join(lines), use_underscores=True)
    return {path: _read(flags[path], text) for path, text in _leaves(given, ()) if path in flags}


def apply_overrides(raw: Mapping[str, Any], overrides: Mapping[Path, Any]) -> dict[str, Any]:
    """Return the file's content with the command line's settings in their places."""
    types = {name: overrides[name, UNION_TAG] for name in _SECTIONS_OF_A_TYPE if (name, UNION_TAG) in overrides}
    data: Any = copy.deepcopy(_with_types(raw, types))
    for path, value in overrides.items():
        place = data
        for key, following in pairwise(path):
            if isinstance(place, list):
                items = cast("list[Any]", place)
                items.extend({} for _ in range(int(key) + 1 - len(items)))
                place = items[int(key)]
            else:
                place = place.setdefault(key, [] if following.isdigit() else {})
        place[path[-1]] = value
    return data


def flags_of(raw: Mapping[str, Any], args: Sequence[str] = ()) -> Iterator[Flag]:
    """Yield every setting that can be given on the command line for a file with this content."""
    yield from _section_flags(Config, raw, (), args)


def _section_flags(section: type[Section], raw: object, path: Path, args: Sequence[str]) -> Iterator[Flag]:
    table = _table(raw, path)
    for key, field in section.model_fields.items():
        here, value = (*path, key), table.get(key)
        inner, item = section_of(field), item_section(field)
        if members := variants(field):
            inner = members.get(str(_table(value, here).get(UNION_TAG)))
            if inner is None:  # the schema will say that the type is missing or unknown
                continue
        if inner is not None:
            yield from _section_flags(inner, value, here, args)
        elif item is not None:
            items = _items(value, here)
            if _follows(here, len(items), args):
                items = [*items, None]
            for number, content in enumerate(items):
                yield from _section_flags(item, content, (*here, str(number)), args)
        elif get_origin(field.annotation) is dict:
            options = _table(value, here)
            for option in dict.fromkeys([*options, *_options_given(here, args)]):
                yield Flag((*here, option), section, field, options.get(option, PydanticUndefined))
        else:
            yield Flag(here, section, field, table.get(key, field.default))


def _table(raw: object, path: Path) -> Mapping[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{'.'.join(path)} is {raw!r}; allowed: a table")
    return cast("Mapping[str, Any]", raw)


def _items(raw: object, path: Path) -> list[Any]:
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise ConfigError(f"{'.'.join(path)} is {raw!r}; allowed: a list of tables")
    return cast("list[Any]", raw)


def _follows(path: Path, count: int, args: Sequence[str]) -> bool:
    """Say whether the command line describes the item after the last of a list."""
    return any(arg.startswith(f"--{'.'.join(path)}.{count}.") for arg in args)


def _options_given(path: Path, args: Sequence[str]) -> list[str]:
    prefix = f"--{'.'.join(path)}."
    return [arg.removeprefix(prefix).partition("=")[0] for arg in args if arg.startswith(prefix)]


def _with_underscores(arg: str) -> str:
    """Spell a flag as its field is spelt: `--optim.weight-decay` is `--optim.weight_decay`."""
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _types_given(args: Sequence[str]) -> dict[str, str]:
    """Return the type that the command line gives each section that has several."""
    given: dict[str, str] = {}
    for name in _SECTIONS_OF_A_TYPE:
        flag = f"--{name}.{UNION_TAG}"
        for arg, after in pairwise([*args, ""]):
            if arg == flag or arg.startswith(flag + "="):
                given[name] = after if arg == flag else arg.removeprefix(flag + "=")
    return given


def _with_types(raw: Mapping[str, Any], types: Mapping[str, object]) -> dict[str, Any]:
    """Change the types of sections but keep the settings that the new ones have too; unknown ones change nothing."""
    data = dict(raw)
    for name, kind in types.items():
        if kind in variants(Config.model_fields[name]):
            data[name] = retyped(name, _table(data.get(name), (name,)), kind)
    return data


def _check_flags(flags: Mapping[Path, Flag], args: Sequence[str], prog: str, own: Mapping[str, str]) -> None:
    """Find flags that do not exist, lack their value, or words that belong to no flag."""
    names = {flag.name: flag for flag in flags.values()}
    following: Flag | None = None
    values = 0
    for arg in [*args, "--"]:
        if not arg.startswith("--"):
            values += 1
            if following is None or (values > 1 and not following.is_list):
                _refuse_word(arg, names, prog)
            continue
        if following is not None and not following.is_list and values == 0:
            raise ConfigError(f"--{following.name} needs a value: {placeholder(following.field)}")
        if arg == "--":
            break
        name, equals, _ = arg[2:].partition("=")
        if name not in names:
            _refuse_flag(name, [*names, *(option.partition(" ")[0].removeprefix("--") for option in own)], prog)
        following, values = names[name], int(bool(equals))


def _refuse_word(word: str, names: Mapping[str, Flag], prog: str) -> NoReturn:
    name, equals, value = word.partition("=")
    if equals and name in names:
        raise ConfigError(f"unexpected argument {word!r}; did you mean --{name} {value}?")
    raise ConfigError(f"unexpected argument {word!r}: settings are given as --section.name VALUE, see {prog} --help")


def _refuse_flag(name: str, names: Sequence[str], prog: str) -> NoReturn:
    section, _, key = name.partition(".")
    if name in known_settings() and section in Config.model_fields:
        members = variants(Config.model_fields[section])
        tags = [tag for tag, member in members.items() if key in member.model_fields]
        raise ConfigError(
            f"--{name} belongs to {section}.{UNION_TAG} {' or '.join(map(repr, tags))}; "
            f"choose it with --{section}.{UNION_TAG} {tags[0]}"
        )
    hint = re.sub(r"(mean|or) ", r"\1 --", did_you_mean(name, names)) or "."
    raise ConfigError(f"unknown option --{name}{hint} All options: {prog} --help")


def _typed_dict(section: type[Section], flags: Mapping[Path, Flag], path: Path) -> type[dict[str, Any]]:
    """Build the type that tyro reads: the flags below `path`, nested as the settings are."""
    depth = len(path)
    entries: dict[str, Any] = {}
    for flag in flags.values():
        if flag.path[:depth] != path:
            continue
        key = flag.path[depth]
        if len(flag.path) == depth + 1:
            entries[key] = _annotation(flag)
        elif key not in entries:
            entries[key] = _typed_dict(flag.owner, flags, (*path, key))
    Settings = TypedDict("Settings", entries, total=False)  # pyright: ignore[reportArgumentType]
    Settings.__doc__ = section.__doc__
    return cast("type[dict[str, Any]]", Settings)


def _annotation(flag: Flag) -> Any:
    default = flag.default
    hint = "(no default)" if default is PydanticUndefined else f"(default: {_spelt(default)})"
    in_options = get_origin(flag.field.annotation) is dict
    text = "Keyword argument of the reward's factory." if in_options else flag.field.description
    if flag.path[-1] == UNION_TAG:
        text = "Kind of window. Changing it keeps the settings that both kinds have."
    return Annotated[
        list[str] if flag.is_list else str,
        tyro.conf.arg(help=text, metavar=_metavar(flag), help_behavior_hint=hint),
    ]


def _metavar(flag: Flag) -> str:
    if flag.path[-1] == UNION_TAG:
        return "|".join(variants(Config.model_fields[flag.path[0]]))
    return "VALUE" if get_origin(flag.field.annotation) is dict else placeholder(flag.field)


def _spelt(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, cast("Sequence[object]", value))) or "none"
    return str(value) if value != "" else "empty"


def _leaves(tree: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(cast("Mapping[str, Any]", value), (*path, key))
        else:
            yield (*path, key), value


def _read(flag: Flag, text: Any) -> Any:
    """Turn a flag's text into what its setting wants; what cannot be read stays, for the schema to refuse."""
    annotation = flag.field.annotation
    if flag.is_list or annotation is str:
        return text
    if get_origin(annotation) is Literal:
        return next((choice for choice in get_args(annotation) if str(choice) == text), text)
    if annotation is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return int(text) if annotation is int else float(text) if annotation is float else json.loads(text)
    except ValueError:
        return text
