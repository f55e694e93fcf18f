"""Files and flags become one config, or one clear message."""

import json
from pathlib import Path
from typing import Any

import pytest
from presets import PRESETS

from mixgrpo.config.load import dump_resolved, load_config, preset_text
from mixgrpo.config.presets import preset_names, read_preset
from mixgrpo.config.sections import (
    FrozenWindowConfig,
    GrpoLossConfig,
    NftLossConfig,
    RandomWindowConfig,
    SlidingWindowConfig,
)
from mixgrpo.errors import ConfigError


def _write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def _preset() -> dict[str, Any]:
    return read_preset("flux-nano")


def _message(source: str | Path, *args: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, args, prog="mixgrpo train here", about="", own={"--output DIR": "folder"})
    assert "pydantic" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", preset_names())
def test_preset_survives_being_written_and_read(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    dump_resolved(config, tmp_path / "resolved.json")
    assert load_config(tmp_path / "resolved.json") == config


def test_resolved_file_spells_out_the_defaults(tmp_path: Path) -> None:
    dump_resolved(load_config("flux-nano"), tmp_path / "resolved.json")
    assert json.loads((tmp_path / "resolved.json").read_text())["guard"]["max_failed_rewards"] == 0.5


@pytest.mark.parametrize("name", PRESETS)
def test_a_printed_preset_is_read_like_the_preset(name: str, tmp_path: Path) -> None:
    assert load_config(_write(tmp_path, preset_text(name))) == load_config(name)


def test_flags_change_what_the_file_says_and_nothing_else() -> None:
    args = [
        "--window.size",
        "3",
        "--optim.lr",
        "3e-5",
        "--rewards.1.weight",
        "2",
        "--lora.rank=16",
        "--rollout.share-trunk",
        "false",
    ]
    changed, base = load_config("flux-nano", args), load_config("flux-nano")
    assert isinstance(changed.window, SlidingWindowConfig)
    assert (changed.window.size, changed.optim.lr, changed.rewards[1].weight) == (3, 3e-5, 2.0)
    assert (changed.lora.rank, changed.rollout.share_trunk) == (16, False)
    assert (changed.rewards[0], changed.model, changed.eval) == (base.rewards[0], base.model, base.eval)


def test_a_list_of_words_is_one_flag() -> None:
    config = load_config("flux-nano", ["--lora.target_modules", "to_q", "to_k", "--seed", "3"])
    assert (config.lora.target_modules, config.seed) == (("to_q", "to_k"), 3)


def test_another_window_keeps_what_both_kinds_have() -> None:
    assert load_config("flux-nano", ["--window.type", "random", "--window.size", "3"]).window == RandomWindowConfig(
        size=3
    )
    frozen = load_config("flux-nano", ["--window.start=1", "--window.type=frozen"]).window
    assert frozen == FrozenWindowConfig(size=2, start=1)


def test_another_loss_keeps_what_both_kinds_have() -> None:
    args = ["--loss.type", "nft", "--loss.beta", "0.1", "--rollout.kernel", "ode", "--rollout.noise_spread", "1"]
    assert load_config("flux-nano", args).loss == NftLossConfig(micro_batch=60, beta=0.1)
    grpo = load_config("flux-nano-neighbor-grpo", ["--loss.type=grpo", "--rollout.kernel=cps"]).loss
    assert grpo == GrpoLossConfig(micro_batch=60), "a clip range of a softmax is none of a density"


def test_a_reward_can_be_added_and_given_options() -> None:
    args = ["--rewards.2.name", "jpeg", "--rewards.2.weight", "0", "--rewards.2.options.quality", "80"]
    added = load_config("flux-nano", args).rewards[2]
    assert (added.name, added.weight, added.options) == ("jpeg", 0.0, {"quality": 80})


def test_flags_can_complete_a_file(tmp_path: Path) -> None:
    content = _preset()
    del content["optim"]
    path = _write(tmp_path, json.dumps(content), "mine.json")
    assert "optim is missing" in _message(path)
    assert load_config(path, ["--optim.lr", "1e-4"]).optim.lr == 1e-4


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--window.sizee", "3"], ["unknown option --window.sizee", "did you mean --window.size?"]),
        (["--lr", "3"], ["did you mean --optim.lr?"]),
        (["--ouput", "x"], ["did you mean --output?"]),
        (["--reward.0.weight", "3"], ["--rewards.0.weight"]),
        (["--window.size", "four"], ["window.size is 'four'", "command line", "a whole number, at least 1"]),
        (["--window.size", "2.5"], ["window.size is '2.5'", "a whole number"]),
        (["--optim.lr", "-1"], ["optim.lr is -1.0", "a number, above 0"]),
        (["--optim.lr", "inf"], ["optim.lr is inf"]),
        (["--eval.num-steps", "0"], ["eval.num_steps is 0", "at least 1"]),
        (["--optim.beta1", "1.5"], ["optim.beta1 is 1.5", "at least 0 and below 1"]),
        (["--rollout.kernel", "sde"], ["rollout.kernel is 'sde'", "flow_sde, dance_sde, cps, gddim"]),
        (["--rollout.share-trunk", "maybe"], ["rollout.share_trunk is 'maybe'", "true or false"]),
        (["--rollout.tail-order", "4"], ["rollout.tail_order is '4'", "one of 1, 2, 3"]),
        (["--name", "a/b"], ["name is 'a/b'", "a text of the form"]),
        (["--window.type", "slide"], ["window.type is 'slide'", "sliding, decaying, frozen, random, all"]),
        (["--window.start", "2"], ["--window.start belongs to window.type 'frozen'", "--window.type frozen"]),
        (["--window.size"], ["--window.size needs a value"]),
        (["--window.size", "--seed", "3"], ["--window.size needs a value"]),
        (["window.size=3"], ["did you mean --window.size 3?"]),
        (["3"], ["unexpected argument '3'"]),
        (["--seed", "3", "4"], ["unexpected argument '4'"]),
        (["--window.size", "8"], ["window.size (8) does not fit", "rollout.num_steps = 8", "at most 7"]),
        (
            ["--loss.updates-per-iteration", "5"],
            [
                "rollout.group_size (12)",
                "loss.updates_per_iteration (5)",
                "12 / 5 = 2.40",
                "4 or 6 updates",
                "10 or 15",
            ],
        ),
        (
            ["--loss.update-split", "prompts", "--loss.updates-per-iteration", "3"],
            ["prompts_per_iteration (10)", "2 or 5 updates"],
        ),
        (["--rewards.0.weight", "0", "--rewards.1.weight", "0"], ["every weight is 0"]),
        (["--rewards.1.name", "ocr"], ["'ocr' is used twice"]),
        (["--rewards.1.evaluation-only", "true"], ["'colors' is evaluation_only", "its weight is 0.5", "weight to 0"]),
        (["--eval.best", "beauty"], ["eval.best is 'beauty'", "ocr"]),
        (["--rollout.kernel", "ode"], ["rollout.noise_spread must be above 0"]),
        (["--rollout.kernel", "cps", "--rollout.eta", "1.5"], ["rollout.eta is 1.5", "at most 1"]),
        (["--rollout.tail_variant", "corrected"], ["rollout.tail_order is 1", "set rollout.tail_order = 3"]),
    ],
)
def test_a_wrong_flag_is_named_with_what_is_allowed(args: list[str], parts: list[str]) -> None:
    message = _message("flux-nano", *args)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"window": {"type": "sliding", "sizee": 2, "size": 2}}, ["unknown setting window.sizee", "mean window.size?"]),
        ({"window": {"type": "random", "size": 2, "stride": 1}}, ["window.stride", "belongs to window.type 'sliding'"]),
        ({"window": {"size": 2}}, ["window.type is missing", "sliding, decaying"]),
        ({"window": {"type": "slide", "size": 2}}, ["window.type is 'slide'"]),
        ({"window": 3}, ["window is 3", "a table"]),
        ({"lr": 1e-4}, ["unknown setting lr", "did you mean optim.lr?"]),
        ({"optim": {}}, ["optim.lr is missing", "Peak learning rate."]),
        ({"seed": "5"}, ["seed is '5'", "a whole number, at least 0"]),
        ({"iterations": True}, ["iterations is True"]),
        ({"iterations": 2.0}, ["iterations is 2.0"]),
        ({"rewards": []}, ["rewards is empty"]),
        ({"rewards": {"name": "ocr"}}, ["rewards is {'name': 'ocr'}", "a list"]),
        ({"rewards": [{"name": "ocr", "wieght": 2}]}, ["rewards.0.wieght", "did you mean rewards.0.weight?"]),
        ({"rewards": [{"name": "ocr", "weight": "2"}]}, ["rewards.0.weight is '2'", "a number, at least 0"]),
        ({"rewards": [{"name": "ocr", "options": 3}]}, ["rewards.0.options is 3", "a table of keyword arguments"]),
        ({"lora": {"target_modules": "to_q"}}, ["lora.target_modules is 'to_q'", "a list"]),
    ],
)
def test_a_wrong_file_is_named_with_what_is_allowed(change: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    path = _write(tmp_path, json.dumps(_preset() | change), "mine.json")
    message = _message(path)
    assert [part for part in ["mine.json", *parts] if part not in message] == [], message


def test_several_mistakes_are_told_together() -> None:
    message = _message("flux-nano", "--optim.lr", "0", "--seed", "-1")
    assert message.splitlines()[0] == "flux-nano: 2 mistakes"
    assert len(message.splitlines()) == 3


def test_a_wrong_section_in_the_file_is_told_when_there_are_flags_too(tmp_path: Path) -> None:
    for change in ({"window": 3}, {"rewards": 3}, {"lora": []}):
        path = _write(tmp_path, json.dumps(_preset() | change), "mine.json")
        assert f"{next(iter(change))} is" in _message(path, "--seed", "3")


def test_unreadable_sources_are_named(tmp_path: Path) -> None:
    assert "did you mean flux-nano?" in _message("flux-nan")
    assert "Presets: flux-nano" in _message("something")
    assert "No such file" in _message(tmp_path / "none.toml")
    assert "is a folder" in _message(tmp_path)
    assert "not valid TOML" in _message(_write(tmp_path, "name = \n"))
    assert "line 2" in _message(_write(tmp_path, "seed = 1\nname = \n"))
    assert "not valid JSON" in _message(_write(tmp_path, "{", "x.json"))
    assert "not a table" in _message(_write(tmp_path, "[1]", "x.json"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in _message(tmp_path / "bytes.toml")


def test_a_run_folder_points_to_its_settings(tmp_path: Path) -> None:
    dump_resolved(load_config("flux-nano"), tmp_path / "resolved.json")
    assert str(tmp_path / "resolved.json") in _message(tmp_path)
