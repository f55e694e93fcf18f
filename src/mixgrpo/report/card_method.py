"""What a model card says of the method: its name and paper, and the command that makes such a run."""

import json
import re
import shlex
from pathlib import Path

from mixgrpo.config.load import load_config
from mixgrpo.config.presets import find_preset, methods, preset_names
from mixgrpo.report.appendix import flatten
from mixgrpo.report.headline import method_name
from mixgrpo.report.read import Run

_PRIVATE = ("options.", "model.device", "model.threads", "model.prompt_cache")
"""Settings that say something of a machine or a server, and nothing of the model."""


def method_title(run: Run) -> str:
    """Return what the method is called: as its preset says, else as its settings look."""
    name = run.setting("name")
    return methods()[find_preset(name).method].title if name in preset_names() else method_name(run)


def method_source(run: Run) -> str:
    """Return where the method is described, as Markdown with links; empty if that is not known."""
    title = method_title(run)
    source = next((method.source for method in methods().values() if method.title == title), "")
    linked = re.sub(r"(?:arXiv )?(\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)
    return "" if not source else f"Method: {title}, {linked}."


def training_command(run: Run) -> str:
    """Return the command line that a run with these settings starts from a preset; empty if no preset leads there."""
    name = run.setting("name")
    if name not in preset_names():
        return ""
    preset = dict(flatten(json.loads(load_config(name).model_dump_json())))
    found = dict(flatten(run.config))
    rewards = [{key for key in keys if key.startswith("rewards.")} for keys in (preset, found)]
    if rewards[0] != rewards[1] or not found.keys() <= preset.keys():  # flags add and take away nothing
        return ""
    words = ["mixgrpo", "train", name]
    for key, text in found.items():
        if text != preset[key] and not any(part in key for part in _PRIVATE):
            words += [f"--{key}", Path(text).name if Path(text).is_absolute() else text]
    return shlex.join(words)
