"""What a dry run changes in the settings of a run, and nothing else. No torch."""

from typing import Any, NamedTuple

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import PromptsConfig, RewardConfig

ITERATIONS = 2

MARK = "DRY RUN: small random model, figures mean nothing"
"""What the report says at its top."""


class StandIns(NamedTuple):
    """What takes the place of what a run would need."""

    model: str
    """Folder of the small model."""
    height: int
    width: int
    num_frames: int
    device: str
    rewards: tuple[RewardConfig, ...]
    prompts: PromptsConfig
    prompt_cache: str
    """Folder, where the run has a prompt cache."""


class Change(NamedTuple):
    """A setting that a dry run changes."""

    name: str
    before: Any
    after: Any


def dry_config(config: Config, stand_ins: StandIns) -> Config:
    """Return the settings of a dry run; those that are not named here stay as they are.

    Raises:
        ValidationError: never for a valid config; a rule that is new must be thought of here.
    """
    updates = config.loss.updates_per_iteration
    model = {
        "path": stand_ins.model,
        "revision": "",
        "height": stand_ins.height,
        "width": stand_ins.width,
        "num_frames": stand_ins.num_frames,
        "prompt_cache": stand_ins.prompt_cache if config.model.prompt_cache else "",
        "quantize": "off",
        "attention": "native",
        "compile": False,
        "device": stand_ins.device,
    }
    evaluation = {
        "every": 1,
        "num_prompts": min(2, config.eval.num_prompts or 2),
        "samples": min(2, config.eval.samples),
        "diversity_prompts": min(1, config.eval.diversity_prompts),
        "diversity_samples": 2,
    }
    dump = config.model_dump()
    return Config.model_validate(
        {
            **dump,
            "description": f"{MARK}. {config.description}".rstrip(),
            "iterations": ITERATIONS,
            "prompts_per_iteration": updates if config.loss.update_split == "prompts" else 1,
            "model": {**dump["model"], **model},
            "prompts": stand_ins.prompts.model_dump(),
            "rewards": [reward.model_dump() for reward in stand_ins.rewards],
            "optim": {**dump["optim"], "warmup": min(config.optim.warmup, ITERATIONS * updates - 1)},
            "eval": {**dump["eval"], **evaluation},
            "checkpoint": {**dump["checkpoint"], "every": 1},
        }
    )


def changes(before: Config, after: Config) -> list[Change]:
    """Return every setting that differs, by its dotted name."""
    old, new = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    names = dict.fromkeys([*old, *new])
    return [Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        parts = tree.items()
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        parts = enumerate(tree)
    else:
        return {name: tree}
    return {
        key: value
        for part, inner in parts
        for key, value in _flat(inner, f"{name}.{part}" if name else str(part)).items()
    }
