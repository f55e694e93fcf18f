"""From a preset or a file, and what the command line adds, to one validated config; and back to a file."""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from mixgrpo.config.flags import apply_overrides, read_overrides
from mixgrpo.config.messages import explain
from mixgrpo.config.presets import find_preset, preset_heading, preset_names, read_preset
from mixgrpo.config.schema import Config
from mixgrpo.config.toml import config_toml
from mixgrpo.errors import ConfigError

_SUFFIXES = (".toml", ".json")


def preset_text(name: str) -> str:
    """Return a preset as a settings file: complete, with comments.

    Raises:
        ConfigError: if there is no such preset.
    """
    return config_toml(load_config(name), preset_heading(name))


def load_config(
    source: str | Path,
    args: Sequence[str] = (),
    *,
    prog: str = "mixgrpo",
    about: str = "",
    own: Mapping[str, str] | None = None,
) -> Config:
    """Read a preset or a TOML or JSON file and put the command line's settings on top.

    Args:
        source: name of a preset, or a file; `resolved.json` of a run folder is one.
        args: flags such as `--window.size 2`. `--help` among them prints the flags and ends the program.
        prog: how the command is called, for the help and the messages.
        about: what the command does, for the help.
        own: options of the command that are no settings, with what they do, for the help and the suggestions.

    Raises:
        ConfigError: if the source cannot be read, or a setting is unknown, missing or not allowed.
    """
    raw = read_source(source)
    overrides = read_overrides(raw, args, prog=prog, about=about, own=own or {}) if args else {}
    raw = apply_overrides(raw, overrides)
    try:
        # As JSON and not as Python objects: there, strict is what TOML and JSON mean by a number or a list.
        return Config.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(explain(error, origin=str(source), overridden=overrides)) from None


def read_source(source: str | Path) -> dict[str, Any]:
    """Read a preset or a file, without looking at what it says.

    Raises:
        ConfigError: if there is no such preset or file, or it is not TOML or JSON.
    """
    name, path = str(source), Path(source).expanduser()
    if name in preset_names():
        return read_preset(name)
    if path.suffix not in _SUFFIXES and not path.exists() and os.sep not in name:
        find_preset(name)  # raises, and says what may have been meant
    if path.is_dir():
        resolved = path / "resolved.json"
        more = f"; it is a run, whose settings are in {resolved}" if resolved.exists() else ""
        raise ConfigError(f"{path} is a folder, not a settings file{more}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the settings file {path}: it is not UTF-8 text ({error.reason})") from None
    return _parse(text, path)


def dump_resolved(config: Config, path: Path) -> None:
    """Write the whole config, defaults included, as JSON that `load_config` reads back to the same config."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path} is not valid {kind}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, not a table of settings")
    return cast("dict[str, Any]", content)
