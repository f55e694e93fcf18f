"""Device, memory and disk against what the run takes."""

import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixgrpo.config.load import load_config
from mixgrpo.config.sections import RewardConfig
from mixgrpo.cost.memory import Memory
from mixgrpo.data.sets import load_prompt_sets
from mixgrpo.doctor.machine import (
    RewardMemory,
    check_device,
    check_disk,
    check_memory,
    check_quantization,
    weigh_rewards,
)


def test_memory_is_compared_with_what_there_is_and_only_what_helps_is_advised() -> None:
    config = load_config("flux1-dev")
    assert check_memory(config, available=300 * 10**9).state == "ok"
    finding = check_memory(config, available=80 * 10**9)
    assert finding.state == "problem"
    assert "which has 80 GB" in finding.text
    assert "--lora.rank 32" in finding.remedy
    assert "gradient-checkpointing" not in finding.remedy, "it is on already"
    adapters = load_config("flux1-dev", ["--lora.rank", "32", "--model.gradient-checkpointing", "false"])
    remedy = check_memory(adapters, available=10 * 10**9).remedy
    assert "--lora.rank" not in remedy
    assert "gradient-checkpointing" in remedy
    assert "quantize" in remedy


def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU of 24 GB, the current one, and one of 80."""
    large = {0: 24 * 10**9, 1: 80 * 10**9}

    def properties(device: torch.device) -> Any:
        return SimpleNamespace(name=f"card {device.index}", total_memory=large[device.index or 0])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)


def test_memory_and_name_are_those_of_the_device_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus(monkeypatch)
    for setting, card, gigabytes in (("auto", 0, 24), ("cuda", 0, 24), ("cuda:0", 0, 24), ("cuda:1", 1, 80)):
        config = load_config("flux1-dev-24gb", ["--model.device", setting])
        assert f"needed on cuda:{card}, which has {gigabytes} GB" in check_memory(config).text
        assert check_device(config).text.startswith(f"card {card}, {gigabytes} GB")
    gone = check_device(load_config("flux1-dev-24gb", ["--model.device", "cuda:2"]))
    assert (gone.state, gone.text) == ("problem", "model.device is 'cuda:2', but torch sees 2 CUDA devices")
    for setting in ("cuda:2", "cudda"):
        config = load_config("flux1-dev-24gb", ["--model.device", setting])
        assert (check_device(config).state, check_memory(config).state) == ("problem", "note")
    assert "needed on cpu" in check_memory(load_config("flux1-dev-24gb", ["--model.device", "cpu"])).text


@pytest.mark.parametrize(
    ("device", "options", "always", "scoring"),
    [
        ("cuda:0", ({}, {}), 4.0e9 + 1.8e9, 0.0),  # float32
        ("cuda:0", ({"dtype": "float16"}, {"dtype": "bfloat16"}), 2.0e9 + 0.9e9, 0.0),
        ("cuda:0", ({"dtype": "float16", "offload": True}, {}), 1.8e9, 2.0e9),
        ("cuda:0", ({"device": "cpu"}, {"device": "cuda:1"}), 0.0, 0.0),
        ("cuda:0", ({"device": "cuda"}, {"device": "cuda:0"}), 5.8e9, 0.0),
        ("cuda:1", ({}, {"device": "cuda:1"}), 1.8e9, 0.0),
        ("cpu", ({"device": "cpu", "offload": True}, {}), 4.0e9, 0.0),
    ],
)
def test_rewards_on_the_same_device_count(
    device: str, options: tuple[Any, Any], always: float, scoring: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_gpus(monkeypatch)
    rewards = [
        RewardConfig(name=n, use=u, options=o) for n, u, o in zip("ab", ("hpsv2", "imagereward"), options, strict=True)
    ]
    rewards += [RewardConfig(name="jpeg"), RewardConfig(name="mine", use="my.module:make")]
    found = weigh_rewards(rewards, torch.device(device))
    assert (found.always, found.scoring) == (pytest.approx(always), pytest.approx(scoring))
    assert found.unknown == (("mine",) if device == "cuda:0" else ())


def test_rewards_that_rest_elsewhere_count_while_pictures_are_drawn() -> None:
    rewards = RewardMemory(always=3.0, scoring=2.0, unknown=())
    assert rewards.counted_in(Memory({}, {"sampling": 5, "decoding": 1, "updating": 6})) == 3.0 + 1.0
    assert rewards.counted_in(Memory({}, {"sampling": 5, "decoding": 1, "updating": 9})) == 3.0
    assert rewards.counted_in(Memory({}, {"sampling": 5, "decoding": 6, "updating": 2})) == 3.0 + 2.0


def test_the_verdict_on_memory_counts_rewards_and_names_those_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus(monkeypatch)
    config = load_config("flux1-dev-24gb")
    bare = config.model_copy(update={"rewards": (RewardConfig(name="jpeg"),)})
    own = RewardConfig(name="mine", use="my.module:make")
    needed = [check_memory(each, available=10**12).text for each in (bare, config)]
    gigabytes = [float(text.split()[1]) for text in needed]
    assert gigabytes[1] - gigabytes[0] == pytest.approx(4.9, abs=0.1), "2 + 2 + 0.9, in half precision"
    assert "4.9 GB of it at most for the weights of rewards" in needed[1]
    between = int((gigabytes[0] + 1) * 1e9 / 0.92)
    assert [check_memory(each, available=between).state for each in (bare, config)] == ["ok", "problem"]
    assert "options of rewards" in check_memory(config, available=between).remedy
    mine = check_memory(config.model_copy(update={"rewards": (*config.rewards, own)}))
    assert mine.text.endswith("; not counted: reward mine")


def test_disk_is_compared_place_by_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prompts = ["--prompts.train", "signs-train", "--prompts.heldout", "signs-heldout"]
    config = load_config("flux1-dev", ["--model.prompt-cache", str(tmp_path / "cache"), *prompts])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 100 * 10**9))
    found = check_disk(config, load_prompt_sets(config), download=34 * 10**9, downloads=tmp_path, run=tmp_path / "runs")
    assert [(one.text.split(":")[0], one.state) for one in found] == [
        ("download", "ok"),
        ("checkpoints", "problem"),  # 3 x 12 bytes x 11.9 billion
        ("prompt cache", "ok"),
    ]
    # 200 prompts are seen and 50 held out, each 512 x 4096 + 768 numbers of 2 bytes.
    assert f"up to {250 * (512 * 4096 + 768) * 2 / 1e9:.3g} GB" in found[2].text


def test_a_device_that_is_not_there_is_a_problem() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert check_device(load_config("flux-nano", ["--model.device", "cuda"])).state == "problem"
    assert check_device(load_config("flux-nano")).state == "ok"
    assert check_device(load_config("flux1-dev")).state == "note"


def test_what_quantised_weights_need_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lora = ["--lora.rank", "4", "--model.quantize"]
    assert check_quantization(load_config("flux-nano").model) == []
    monkeypatch.setattr("mixgrpo.models.load.find_spec", lambda name: None)
    for kind, library in (("int8", "torchao"), ("nf4", "bitsandbytes")):
        [found] = check_quantization(load_config("flux-nano", [*lora, kind]).model)
        assert found.state == "problem"
        assert library in found.text
        assert "mixgrpo[quantize]" in found.text
    monkeypatch.setattr("mixgrpo.models.load.find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    states = [check_quantization(load_config("flux-nano", [*lora, kind]).model)[0].state for kind in ("int8", "nf4")]
    assert states == ["ok", "problem"], "nf4 needs a GPU"
