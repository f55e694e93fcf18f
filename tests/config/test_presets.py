"""Presets are complete, say what the papers say, and can be planned."""

import tomllib
from importlib import resources
from typing import Any

import pytest

from mixgrpo.config.fields import known_settings
from mixgrpo.config.flags import flags_of
from mixgrpo.config.load import load_config, preset_names, preset_text
from mixgrpo.config.sections import AllStepsConfig, FrozenWindowConfig, SlidingWindowConfig
from mixgrpo.train.settings import cost_of, dancegrpo_cost, make_plan, make_window, mean_cost

NAMES = preset_names()


def test_the_presets_are_those_we_promise() -> None:
    assert set(NAMES) == {
        "flux-nano",
        "flux-nano-flash",
        "flux-nano-flash-star",
        "flux-nano-dancegrpo",
        "flux1-dev-mixgrpo",
        "flux1-dev-mixgrpo-flash",
        "flux1-dev-mixgrpo-flash-star",
        "flux1-dev-dancegrpo",
    }


@pytest.mark.parametrize("name", NAMES)
def test_preset_spells_out_every_setting(name: str) -> None:
    raw = tomllib.loads(preset_text(name))
    unsaid = [flag.name for flag in flags_of(raw) if not _says(raw, flag.path)]
    assert unsaid == []
    assert raw["name"] == name
    assert raw["description"]


def _says(raw: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if isinstance(raw, list):
            raw = raw[int(key)]
        elif key in raw:
            raw = raw[key]
        else:
            return False
    return True


@pytest.mark.parametrize("name", NAMES)
def test_preset_can_be_planned(name: str) -> None:
    config = load_config(name)
    window = make_window(config)
    for iteration in range(config.iterations):
        plan = make_plan(config, window.at(iteration))
        assert plan.sigmas[-1] == 0.0
        assert 0 <= plan.window.start < plan.window.stop <= config.rollout.num_steps - 1
    assert mean_cost(config, shared=True).forwards <= mean_cost(config, shared=False).forwards


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("flux1-dev")])
def test_full_size_presets_have_the_settings_of_the_papers(name: str) -> None:
    config = load_config(name)
    rollout, loss, optim = config.rollout, config.loss, config.optim
    assert (config.model.path, config.model.height, config.model.width) == ("black-forest-labs/FLUX.1-dev", 720, 720)
    assert (config.model.guidance_scale, config.model.dtype, config.model.autocast) == (3.5, "bfloat16", "bfloat16")
    assert (rollout.num_steps, rollout.shift, rollout.group_size, rollout.noise_spread) == (25, 3.0, 12, 0.0)
    assert (loss.clip_range, config.advantages.clip, loss.updates_per_iteration) == (1e-4, 5.0, 4)
    assert (optim.lr, optim.weight_decay, optim.max_grad_norm) == (1e-5, 1e-4, 1.0)
    assert (config.iterations, config.prompts_per_iteration, config.eval.num_steps) == (300, 32, 50)
    assert "not part of this version" in preset_text(name)


def test_full_size_windows_and_tails_are_those_of_the_papers() -> None:
    plain, flash = load_config("flux1-dev-mixgrpo"), load_config("flux1-dev-mixgrpo-flash")
    star, dance = load_config("flux1-dev-mixgrpo-flash-star"), load_config("flux1-dev-dancegrpo")
    assert plain.window == SlidingWindowConfig(size=4, stride=1, interval=25)
    assert flash.window == SlidingWindowConfig(size=4, stride=1, interval=20)
    assert star.window == FrozenWindowConfig(size=4, start=0)
    assert dance.window == AllStepsConfig(trained_fraction=0.6)
    assert [config.rollout.tail_ratio for config in (plain, flash, star, dance)] == [1.0, 0.4, 0.2, 1.0]
    assert [config.rollout.tail_order for config in (plain, flash, star, dance)] == [1, 2, 2, 1]
    assert [config.rollout.eta for config in (plain, flash, star, dance)] == [0.7, 0.7, 0.7, 0.3]
    assert dance.rollout.kernel == "dance_sde"


def test_costs_are_those_of_the_papers_tables() -> None:
    dance = dancegrpo_cost(25)
    assert (dance.sampling, dance.update) == (25.0, 14.0)
    same = cost_of(load_config("flux1-dev-dancegrpo"), 0, shared=False)
    assert (same.sampling, same.update) == (25.0, 14.0)
    plain = mean_cost(load_config("flux1-dev-mixgrpo"), shared=False)
    assert (plain.sampling, plain.update) == (25.0, 4.0)
    flash = mean_cost(load_config("flux1-dev-mixgrpo-flash"), shared=False)
    assert flash.sampling == pytest.approx(16.6, abs=0.1)
    star = mean_cost(load_config("flux1-dev-mixgrpo-flash-star"), shared=False)
    assert (star.sampling, star.update) == (8.0, 4.0)


def test_bundled_prompts_of_full_size_presets_are_distinct() -> None:
    folder = resources.files("mixgrpo").joinpath("assets", "prompts")
    lists = {}
    for part, count in (("train", 200), ("heldout", 50)):
        lines = folder.joinpath(f"signs-{part}.txt").read_text(encoding="utf-8").splitlines()
        prompts = [line for line in lines if line and not line.startswith("#")]
        assert len(set(prompts)) == len(prompts) == count
        assert all(prompt.count('"') == 2 for prompt in prompts)
        lists[part] = {prompt.split('"')[1] for prompt in prompts}
        assert len(lists[part]) == count
    assert lists["train"].isdisjoint(lists["heldout"])


def test_known_settings_are_dotted_names() -> None:
    assert {"optim.lr", "window.start", "window.trained_fraction", "rewards.N.weight", "name"} <= set(known_settings())
