"""The settings that come with the package: a model's complete settings, and what a method changes in them.

`models/MODEL.toml` says every setting, or only what is different from the one that it is `based_on`; by itself it is
MixGRPO. `methods/METHOD.toml` says what the method is, what it changes for every model (`[all]`), and what for one
model, and those based on it, on top of that (`[MODEL]`). The preset `MODEL-METHOD` is the one with the other laid over
it; `MODEL` alone is short for `MODEL-mixgrpo`.
"""

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, cast

from mixgrpo.config.fields import UNION_TAG, retyped
from mixgrpo.config.messages import did_you_mean
from mixgrpo.errors import ConfigError

BASE_METHOD = "mixgrpo"
"""Method that the model files say, and that a model's name alone stands for."""
_ALL = "all"
"""Table of a method's file with what it changes for every model."""
_BASE = "based_on"
"""Key of a model's file: the model that says what this one does not."""
_WORDS = ("title", "summary", "source")


@dataclass(frozen=True, slots=True)
class Method:
    """What a method is called, does and comes from."""

    name: str
    """Its part of a preset's name."""
    title: str
    """Its name in tables and on pages."""
    summary: str
    """What it does, in one phrase."""
    source: str
    """Where it is described."""


@dataclass(frozen=True, slots=True)
class Preset:
    """What a preset's name stands for."""

    name: str
    model: str
    method: str


def model_names() -> tuple[str, ...]:
    """Return the names of the models that there are presets for, in alphabetical order."""
    return _names("models")


def model_words(model: str) -> str:
    """Return what a model's settings are, in one phrase."""
    return tomllib.loads(_text("models", model))["description"]


def methods() -> dict[str, Method]:
    """Return the methods by name: MixGRPO, then the others in alphabetical order."""
    return {name: Method(name, **{word: _method(name)[word] for word in _WORDS}) for name in _method_names()}


def presets() -> tuple[Preset, ...]:
    """Return all presets, model by model: its name alone, then one for every method."""
    return tuple(
        preset
        for model in model_names()
        for preset in (
            Preset(model, model, BASE_METHOD),
            *(Preset(f"{model}-{method}", model, method) for method in _method_names()),
        )
    )


def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, model by model."""
    return tuple(preset.name for preset in presets())


def find_preset(name: str) -> Preset:
    """Return what a preset's name stands for.

    Raises:
        ConfigError: if there is no such preset.
    """
    known = {preset.name: preset for preset in presets()}
    if name in _method_names():
        which = ", ".join(f"{model}-{name}" for model in model_names())
        raise ConfigError(f"{name!r} is a method; a preset is a model and a method: {which}")
    if name not in known:
        # Who wrote a model's name and more means a method of it, however near the model's name alone may be.
        near = [other for other, found in known.items() if name.startswith(f"{found.model}-") and other != found.model]
        hint = did_you_mean(name, near or known) or "."
        raise ConfigError(
            f"no preset is called {name!r}{hint} Presets: {', '.join(model_names())}, or a model and a method "
            f"such as {next(reversed(known))}; mixgrpo presets lists them"
        )
    return known[name]


def read_preset(name: str) -> dict[str, Any]:
    """Return a preset's settings, not yet validated.

    Raises:
        ConfigError: if there is no such preset.
    """
    preset = find_preset(name)
    return preset_settings(preset.model, preset.method) | {"name": name}


def preset_settings(model: str, method: str) -> dict[str, Any]:
    """Return a model's settings with a method's laid over them, not yet validated.

    Raises:
        ConfigError: if there is no such model or method.
    """
    preset = find_preset(f"{model}-{method}")
    change, settings, tables = _method(method), dict[str, Any](), [_ALL]
    for name, text in _with_bases(model):
        settings = overlaid(settings, text)
        tables.append(name)
    words = f"{change['title']} ({change['summary']}): {settings['description']}"
    for table in tables:
        settings = overlaid(settings, change.get(table, {}))
    return settings | {"name": preset.name, "description": words}


def preset_heading(name: str) -> list[str]:
    """Return the lines to be told above a preset's settings: its method, then what the model's file says at its top.

    Raises:
        ConfigError: if there is no such preset.
    """
    preset = find_preset(name)
    method = methods()[preset.method]
    top = itertools.takewhile(lambda line: line.startswith("#"), _text("models", preset.model).splitlines())
    return [
        f"{method.title} ({method.source}): {method.summary}.",
        "",
        *(line.removeprefix("#").removeprefix(" ") for line in top),
    ]


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others laid over them.

    Tables are merged key by key; of a table that gets another `type`, what the new type has too stays. Everything else
    is replaced.
    """
    result = dict(below)
    for key, value in above.items():
        old = below.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            table, old_table = cast("dict[str, Any]", value), cast("dict[str, Any]", old)
            kind = table.get(UNION_TAG, old_table.get(UNION_TAG))
            if kind != old_table.get(UNION_TAG):
                old_table = retyped(key, old_table, kind)
            result[key] = overlaid(old_table, table)
        else:
            result[key] = value
    return result


def read_method(text: str, name: str) -> dict[str, Any]:
    """Read a method's file: its words, and what it changes.

    Raises:
        ConfigError: if it lacks a word, or has a key that is neither a word, `all`, nor the name of a model.
    """
    content = tomllib.loads(text)
    if missing := [word for word in _WORDS if not isinstance(content.get(word), str)]:
        raise ConfigError(f"the method {name} says no {missing[0]}; every method needs {', '.join(_WORDS)}")
    tables = (_ALL, *model_names())
    for key in content.keys() - _WORDS:
        if key not in tables:
            raise ConfigError(
                f"the method {name} has the unknown key {key!r}{did_you_mean(key, tables) or ';'} "
                f"allowed beside {', '.join(_WORDS)}: {', '.join(tables)}"
            )
        if not isinstance(content[key], dict):
            raise ConfigError(f"the method {name} has {key} = {content[key]!r}; allowed: a table of settings")
    return content


def _with_bases(model: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the settings in the file of a model, and before them those of the one that it is based on, with names."""
    settings = tomllib.loads(_text("models", model))
    base = settings.pop(_BASE, None)
    return [*(_with_bases(base) if base is not None else []), (model, settings)]


def _method_names() -> tuple[str, ...]:
    return (BASE_METHOD, *(name for name in _names("methods") if name != BASE_METHOD))


def _method(name: str) -> dict[str, Any]:
    return read_method(_text("methods", name), name)


def _names(folder: str) -> tuple[str, ...]:
    files = resources.files(__name__).joinpath(folder).iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def _text(folder: str, name: str) -> str:
    return resources.files(__name__).joinpath(folder, f"{name}.toml").read_text(encoding="utf-8")
