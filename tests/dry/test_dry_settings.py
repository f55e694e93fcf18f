"""A dry run changes the settings that docs/dry-run.md lists, and no other."""

import re
from pathlib import Path
from typing import Any

import pytest

from mixgrpo.config.load import load_config
from mixgrpo.config.presets import preset_names, read_preset
from mixgrpo.config.schema import Config
from mixgrpo.dry.settings import StandIns, changes, dry_config

DOCUMENT = Path(__file__).parents[2] / "docs" / "dry-run.md"


def stand_ins(config: Config, **others: Any) -> StandIns:
    usual = {
        "model": "/small",
        "height": 16,
        "width": 16,
        "num_frames": 1,
        "device": "cpu",
        "rewards": config.rewards,
        "prompts": config.prompts,
        "prompt_cache": "/cache",
    }
    return StandIns(**{**usual, **others})


def documented() -> list[str]:
    """Return the names in the first column of the table."""
    table = DOCUMENT.read_text().partition("## Settings that change")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_only_documented_settings_change_and_each_of_them_can() -> None:
    raw = read_preset("flux1-dev")
    raw["model"] |= {"revision": "main", "num_frames": 5, "quantize": "nf4", "attention": "flash", "compile": True}
    raw["lora"] |= {"rank": 32}
    raw["optim"] |= {"warmup": 500}
    raw["checkpoint"] |= {"keep": 7}
    raw["eval"] |= {"training_sampler": True, "num_prompts": 64}
    config = Config.model_validate(raw)
    rewards = tuple(
        reward.model_copy(update={"options": {"path": "/weights", "device": "cpu"}}) for reward in config.rewards
    )
    prompts = config.prompts.model_copy(update={"train": "/train.jsonl", "heldout": "/heldout.jsonl"})
    dry = dry_config(config, stand_ins(config, rewards=rewards, prompts=prompts))
    changed = {re.sub(r"^rewards\.\d+\.options(\..*)?$", "rewards.*.options", c.name) for c in changes(config, dry)}
    assert changed == set(documented())
    assert (dry.optim.warmup, dry.loss.updates_per_iteration, dry.iterations) == (7, 4, 2)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_keeps_its_rules(name: str) -> None:
    config = load_config(name)
    dry = dry_config(config, stand_ins(config))
    for kept in ("seed", "rollout", "window", "loss", "advantages", "lora", "guard", "rewards", "prompts"):
        assert getattr(dry, kept) == getattr(config, kept)
    assert dry.optim.model_copy(update={"warmup": config.optim.warmup}) == config.optim
    assert dry.prompts_per_iteration <= config.prompts_per_iteration
    assert config.description in dry.description


def test_updates_on_prompts_keep_as_many_prompts_as_there_are_updates() -> None:
    raw = read_preset("flux-nano")
    raw["loss"] |= {"updates_per_iteration": 5, "update_split": "prompts"}
    config = Config.model_validate(raw)
    assert dry_config(config, stand_ins(config)).prompts_per_iteration == 5


def test_what_is_off_stays_off() -> None:
    raw = read_preset("flux-nano")
    raw["eval"] |= {"diversity_prompts": 0, "num_prompts": 1, "samples": 1}
    dry = dry_config(config := Config.model_validate(raw), stand_ins(config))
    assert (dry.eval.diversity_prompts, dry.eval.num_prompts, dry.eval.samples) == (0, 1, 1)
    assert dry.model.prompt_cache == ""
