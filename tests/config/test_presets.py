"""Presets are complete, say what the papers say, and can be planned."""

import tomllib
from importlib import resources
from typing import Any

import pytest
from presets import PRESETS

from mixgrpo.config.fields import known_settings
from mixgrpo.config.flags import flags_of
from mixgrpo.config.load import load_config, preset_text
from mixgrpo.config.presets import (
    find_preset,
    methods,
    model_names,
    overlaid,
    preset_names,
    preset_settings,
    read_method,
    read_preset,
)
from mixgrpo.config.sections import AllStepsConfig, FrozenWindowConfig, SlidingWindowConfig
from mixgrpo.errors import ConfigError
from mixgrpo.rl.window import trained_steps
from mixgrpo.train.settings import cost_of, dancegrpo_cost, make_plan, make_window, mean_cost


def test_a_preset_is_a_model_and_a_method_and_mixgrpo_goes_without_saying() -> None:
    pairs = {f"{model}-{method}" for model in model_names() for method in methods()}
    assert set(preset_names()) == pairs | set(model_names())
    assert len(set(preset_names())) == len(preset_names()), "two presets have one name"
    assert next(iter(methods())) == "mixgrpo"
    for model in model_names():
        short, full = load_config(model), load_config(f"{model}-mixgrpo")
        assert (short.name, full.name) == (model, f"{model}-mixgrpo")
        assert short.model_copy(update={"name": full.name}) == full


@pytest.mark.parametrize("model", model_names())
def test_model_spells_out_every_setting(model: str) -> None:
    raw = preset_settings(model, "mixgrpo")
    assert [flag.name for flag in flags_of(raw) if not _says(raw, flag.path)] == []


@pytest.mark.parametrize("name", PRESETS)
def test_printed_preset_spells_out_and_explains_every_setting(name: str) -> None:
    text = preset_text(name)
    raw, flags = tomllib.loads(text), [flag for flag in flags_of(read_preset(name)) if flag.path[-2:-1] != ("options",)]
    assert [flag.name for flag in flags if not _says(raw, flag.path)] == []
    told = " ".join(text.replace("\n#", "").split())
    assert [flag.name for flag in flags if " ".join((flag.field.description or "").split()) not in told] == []
    method = methods()[find_preset(name).method]
    assert f"# {method.title} ({method.source}): {method.summary}." in text.replace("\n# ", " ")[:400]
    assert raw["name"] == name
    assert raw["description"].startswith(method.title)


def test_a_method_changes_what_it_says_and_nothing_else() -> None:
    base, flash = preset_settings("flux1-dev", "mixgrpo"), preset_settings("flux1-dev", "mixgrpo-flash")
    assert {key for key in base if base[key] != flash[key]} == {"name", "description", "rollout", "window"}
    assert flash["rollout"] == base["rollout"] | {"tail_ratio": 0.4, "tail_order": 2}
    assert flash["window"] == base["window"] | {"interval": 20}, "of one model only"
    assert preset_settings("flux-nano", "mixgrpo-flash")["window"] == preset_settings("flux-nano", "mixgrpo")["window"]


def test_settings_are_laid_over_each_other() -> None:
    below = {"a": 1, "t": {"x": 1, "y": {"z": 1}}, "w": {"type": "sliding", "size": 2}, "r": [{"n": 1}, {"n": 2}]}
    assert overlaid(below, {"t": {"y": {"u": 2}}}) == below | {"t": {"x": 1, "y": {"z": 1, "u": 2}}}
    assert overlaid(below, {"w": {"size": 3}})["w"] == {"type": "sliding", "size": 3}
    assert overlaid(below, {"w": {"type": "sliding", "size": 3}})["w"] == {"type": "sliding", "size": 3}
    assert overlaid(below, {"w": {"type": "frozen", "start": 0}})["w"] == {"type": "frozen", "start": 0}
    assert overlaid(below, {"r": [{"m": 1}]})["r"] == [{"m": 1}]
    windows = {"window": {"type": "sliding", "size": 4, "stride": 1, "interval": 25}, "loss": {"type": "grpo"}}
    assert overlaid(windows, {"window": {"type": "frozen", "start": 0}})["window"] == {
        "type": "frozen",
        "size": 4,
        "start": 0,
    }, "what the new type has too stays"
    losses = {"loss": {"type": "grpo", "clip_range": 1e-4, "micro_batch": 7, "ratio": "plain"}}
    assert overlaid(losses, {"loss": {"type": "neighbor"}})["loss"] == {"type": "neighbor", "micro_batch": 7}, (
        "a clip range is on another scale there"
    )
    assert below["t"] == {"x": 1, "y": {"z": 1}}, "what is below stays as it is"


def test_a_model_may_be_based_on_another() -> None:
    """The chain flux1-dev, flux1-dev-lora, flux1-dev-24gb: each says what differs; methods reach all of them."""
    full, lora, small = (load_config(name) for name in ("flux1-dev", "flux1-dev-lora", "flux1-dev-24gb"))
    assert (full.lora.rank, lora.lora.rank, small.lora.rank) == (0, 32, 32)
    assert (full.model.quantize, lora.model.quantize, small.model.quantize) == ("off", "off", "nf4")
    assert full.model == lora.model
    assert full.window == lora.window == small.window
    assert full.optim.lr < lora.optim.lr == small.optim.lr
    assert [reward.use for reward in small.rewards] == [reward.use for reward in full.rewards]
    assert load_config("flux1-dev-24gb-mixgrpo-flash").window == load_config("flux1-dev-mixgrpo-flash").window
    assert load_config("flux1-dev-24gb-flow-grpo").eval.num_steps == 28, "a table for the model it is based on"


def test_stable_diffusion_has_the_settings_of_table_3() -> None:
    config = load_config("sd3.5-medium")
    rollout, model = config.rollout, config.model
    assert (model.height, model.width, model.guidance_scale) == (512, 512, 4.5)
    assert (rollout.num_steps, rollout.group_size, rollout.eta, config.eval.num_steps) == (10, 24, 0.7, 40)
    assert config.window == SlidingWindowConfig(size=4, stride=1, interval=150)
    assert config.iterations == 6 * 150, "once to every place of the window"
    assert (config.prompts_per_iteration, config.loss.updates_per_iteration) == (96, 1)
    assert (config.optim.lr, config.optim.weight_decay) == (3e-4, 1e-4)
    assert config.lora.rank > 0
    assert (config.loss.kl_weight > 0, config.optim.ema_decay > 0) == (True, True)
    cost = mean_cost(config, shared=False)
    assert (cost.sampling, cost.update) == (10.0, 4.0)


WORDS = 'title = "T"\nsummary = "s"\nsource = "p"\n'


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('title = "T"\nsummary = "s"\n', ["says no source"]),
        (
            WORDS + "[flux-nan.optim]\nlr = 1.0\n",
            ["unknown key 'flux-nan'", "mean flux-nano?", "all, flux-nano, flux1-dev"],
        ),
        (WORDS + "[optim]\nlr = 1.0\n", ["unknown key 'optim'"]),
        (WORDS + "all = 3\n", ["has all = 3", "a table"]),
    ],
)
def test_a_wrong_method_file_is_told(text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_method(text, "mine")
    assert [part for part in ["the method mine", *parts] if part not in str(caught.value)] == [], caught.value


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("flux-nan", "flux-nano"),
        ("flux-nano-flash", "flux-nano-mixgrpo-flash"),
        ("flux-nano-dance", "flux-nano-dancegrpo"),
        ("flux1-dev-mixgrpo-flsh-star", "flux1-dev-mixgrpo-flash-star"),
    ],
)
def test_a_wrong_name_is_told_with_the_right_one(given: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_preset(given)
    assert meant in str(caught.value).partition("did you mean ")[2].partition("?")[0].split(" or ")


def test_a_method_alone_is_told_with_its_models() -> None:
    with pytest.raises(
        ConfigError, match=r"'mixgrpo-flash' is a method.*: flux-nano-mixgrpo-flash, flux1-dev-mixgrpo-flash"
    ):
        find_preset("mixgrpo-flash")


def _says(raw: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if isinstance(raw, list):
            raw = raw[int(key)]
        elif key in raw:
            raw = raw[key]
        else:
            return False
    return True


@pytest.mark.parametrize("name", PRESETS)
def test_preset_can_be_planned(name: str) -> None:
    config = load_config(name)
    window = make_window(config)
    for iteration in range(config.iterations):
        plan = make_plan(config, window.at(iteration))
        assert plan.sigmas[-1] == 0.0
        if config.rollout.kernel == "ode":
            assert not plan.window
        else:
            assert 0 <= plan.window.start < plan.window.stop <= config.rollout.num_steps - 1
        trained = trained_steps(window, iteration)
        assert trained
        assert set(trained) <= set(range(config.rollout.num_steps - 1))
    assert mean_cost(config, shared=True).forwards <= mean_cost(config, shared=False).forwards


PAPER = ("mixgrpo", "mixgrpo-flash", "mixgrpo-flash-star", "mixgrpo-cps", "dancegrpo", "dancegrpo-random")


@pytest.mark.parametrize("name", [f"flux1-dev-{method}" for method in PAPER])
def test_full_size_presets_have_the_settings_of_the_papers(name: str) -> None:
    config = load_config(name)
    rollout, loss, optim = config.rollout, config.loss, config.optim
    assert (config.model.path, config.model.height, config.model.width) == ("black-forest-labs/FLUX.1-dev", 720, 720)
    assert (config.model.guidance_scale, config.model.dtype, config.model.autocast) == (3.5, "bfloat16", "bfloat16")
    assert (rollout.num_steps, rollout.shift, rollout.group_size, rollout.noise_spread) == (25, 3.0, 12, 0.0)
    assert (loss.clip_range, config.advantages.clip, loss.updates_per_iteration) == (1e-4, 5.0, 4)
    assert (optim.lr, optim.weight_decay, optim.max_grad_norm) == (1e-5, 1e-4, 1.0)
    assert (config.iterations, config.prompts_per_iteration, config.eval.num_steps) == (300, 32, 50)
    assert [(reward.use, reward.weight) for reward in config.rewards] == [
        ("hpsv2", 1.0),
        ("pickscore", 1.0),
        ("imagereward", 1.0),
    ]
    assert (config.prompts.train, config.prompts.heldout) == (
        "hub:ymhao/HPDv2/train.json",
        "hub:ymhao/HPDv2/test.json",
    )


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
    for few in ("random", "frozen"):
        variant = mean_cost(load_config(f"flux1-dev-dancegrpo-{few}"), shared=False)
        assert (variant.sampling, variant.update) == (25.0, 4.0)
    neighbor = mean_cost(load_config("flux1-dev-neighbor-grpo"), shared=True)
    assert (neighbor.sampling, neighbor.update) == (8.0, pytest.approx(4 / 3))


@pytest.mark.parametrize("name", PRESETS)
def test_preset_counts_the_calls_of_its_loss(name: str) -> None:
    config = load_config(name)
    cost = mean_cost(config, shared=True)
    assert (cost.reference > 0) == (config.loss.kl_weight > 0)
    assert cost.forwards == pytest.approx(cost.sampling + cost.old + cost.reference + 3 * cost.update)


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
