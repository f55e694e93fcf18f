"""Every check finds what it is there for, and says what to do."""

import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from mixgrpo.cli import main
from mixgrpo.config.load import dump_resolved, load_config
from mixgrpo.config.schema import Config
from mixgrpo.data.sets import load_prompt_sets
from mixgrpo.doctor.access import check_model
from mixgrpo.doctor.machine import check_device, check_disk, check_memory, check_quantization
from mixgrpo.doctor.rewards import check_rewards
from mixgrpo.doctor.sampling import check_sampling
from mixgrpo.models.pipeline import PipelineModel

HUB_MODEL = "somebody/a-model"


class Hub:
    """Answers as the hub does."""

    def __init__(self, fault: Exception | None = None) -> None:
        self._fault = fault

    def auth_check(self, repo: str) -> None:
        assert repo == HUB_MODEL
        if self._fault is not None:
            raise self._fault

    def model_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        files = {
            "model_index.json": 500,
            "transformer/a-00001.safetensors": 2_000_000_000,
            "vae/b.safetensors": 500_000_000,
            "all_in_one.safetensors": 9_000_000_000,  # not what diffusers loads
        }
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in files.items()])


def refusal(kind: type[Exception], status: int) -> Exception:
    response = httpx2.Response(status, request=httpx2.Request("GET", "https://hub.test"))
    return kind("refused", response=response)  # pyright: ignore[reportCallIssue]


def on_hub(**model: Any) -> Any:
    return load_config("flux-nano").model.model_copy(update={"path": HUB_MODEL, **model})


def test_a_model_on_the_hub_that_is_open_says_how_much_there_is_to_download() -> None:
    finding, download = check_model(on_hub(), cast(HfApi, Hub()))
    assert (finding.state, download) == ("ok", 2_500_000_000)
    assert "2.5 GB to download" in finding.text


@pytest.mark.parametrize(
    ("fault", "text", "remedy"),
    [
        (refusal(GatedRepoError, 403), "gated and this account has no access", "accept the licence on .*hf auth login"),
        (refusal(RepositoryNotFoundError, 404), f"the hub has no {HUB_MODEL}", "a private model needs a token"),
        (refusal(RevisionNotFoundError, 404), "no revision 'v9'", HUB_MODEL),
        (httpx2.ConnectError("no route"), "the hub does not answer: no route", "give its folder as model.path"),
    ],
)
def test_why_a_model_on_the_hub_cannot_be_had(fault: Exception, text: str, remedy: str) -> None:
    finding, download = check_model(on_hub(revision="v9"), cast(HfApi, Hub(fault)))
    assert (finding.state, download) == ("problem", 0)
    assert text in finding.text
    assert re.search(remedy, finding.remedy)


def test_a_folder_that_is_no_model_is_a_problem(tmp_path: Path) -> None:
    finding, _ = check_model(on_hub(path=str(tmp_path)))
    assert finding.state == "problem"
    assert "no model_index.json" in finding.text or "a folder with a model_index.json" in finding.text


def test_memory_is_compared_with_what_there_is_and_only_what_helps_is_advised() -> None:
    config = load_config("flux1-dev")
    assert check_memory(config, available=300 * 10**9).state == "ok"
    finding = check_memory(config, available=80 * 10**9)
    assert finding.state == "problem"
    assert finding.text.endswith("which has 80 GB")
    assert "--lora.rank 32" in finding.remedy
    assert "gradient-checkpointing" not in finding.remedy, "it is on already"
    adapters = load_config("flux1-dev", ["--lora.rank", "32", "--model.gradient-checkpointing", "false"])
    remedy = check_memory(adapters, available=10 * 10**9).remedy
    assert "--lora.rank" not in remedy
    assert "gradient-checkpointing" in remedy
    assert "quantize" in remedy


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


def test_rewards_are_made_and_asked(make_config: Callable[..., Config]) -> None:
    rewards = [
        {"name": "brightness"},
        {"name": "colors"},
        {"name": "gone", "use": "no_such_module:make"},
    ]
    bright, colors, gone = check_rewards(make_config(rewards=rewards), ["a picture", "another"])
    assert bright.state == "ok"
    assert "2 pictures of noise" in bright.text
    # A prompt that asks for no colours is nothing to score by.
    assert colors.state == "problem"
    assert "2 of 2 pictures of noise got no score" in colors.text
    assert gone.state == "problem"
    assert "no_such_module" in gone.text


def test_sampling_is_compared_with_diffusers(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = check_sampling(make_config(), "a picture")
    assert finding.state == "ok", finding.text
    right = PipelineModel.sigmas
    monkeypatch.setattr(PipelineModel, "sigmas", lambda self, steps: (1.0, 0.99, *right(self, steps)[2:]))
    finding = check_sampling(make_config(), "a picture")
    assert finding.state == "problem"
    assert "differ by" in finding.text


def test_the_command_ends_with_1_if_a_run_would_fail(
    make_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    dump_resolved(make_config(), good)
    dump_resolved(make_config(rewards=[{"name": "gone", "use": "no_such_module:make"}]), bad)
    assert main(["doctor", str(good)]) == 0
    out = capsys.readouterr().out
    assert "sampling: our loop and diffusers' pipeline differ by" in out.replace("\n        ", " ")
    assert "Ready: " in out
    assert main(["doctor", str(bad), "--quick"]) == 1
    out = capsys.readouterr().out
    assert "1 problem: the run would fail" in out
    assert "sampling" not in out
