"""Settings files for dry runs that take a second: flux-nano's, with few steps and rewards that need no weights."""

import copy
import json
from pathlib import Path
from typing import Any

from mixgrpo.config.load import load_config
from mixgrpo.config.presets import read_preset
from mixgrpo.config.schema import Config

FEW = {
    "rollout": {"num_steps": 3, "group_size": 2, "micro_batch": 2},
    "window": {"size": 1},
    "eval": {"num_steps": 2},
    "optim": {"warmup": 0},
}
PLAIN = [{"name": "brightness"}, {"name": "jpeg", "weight": 0.5}]
LARGE = {"height": 512, "width": 768, "max_sequence_length": 64}


def settings(folder: Path, *, rewards: list[dict[str, Any]] | None = None, **sections: Any) -> Config:
    """Read a settings file with those of flux-nano, `FEW`, and keys of sections on top."""
    raw = copy.deepcopy(read_preset("flux-nano"))
    for section, values in [*FEW.items(), *sections.items()]:
        raw[section] = {**raw[section], **values} if isinstance(values, dict) else values
    raw["rewards"] = rewards or PLAIN
    file = folder / "settings.json"
    file.write_text(json.dumps(raw))
    return load_config(file)
