"""Whether the files of rewards can be had is known before anything is loaded."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError

from mixgrpo import rewards
from mixgrpo.commands.doctor import examine
from mixgrpo.config.schema import Config
from mixgrpo.doctor import access
from mixgrpo.doctor.access import FilesCheck, check_reward_files
from mixgrpo.doctor.finding import Finding
from mixgrpo.rewards import REWARDS, reward_sources
from tests.doctor.test_doctor import refusal

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PUBLISHED = {
    "xswu/HPSv2": {"HPS_v2.1_compressed.pt": 2_000_000_000, "HPS_v2_compressed.pt": 4_000_000_000},
    CLIP_H: {"tokenizer.json": 2_000_000, "vocab.json": 800_000, "model.safetensors": 3_900_000_000},
    "anna/shards": {
        "config.json": 1_000,
        "model.safetensors.index.json": 20_000,
        "model-00001-of-00002.safetensors": 5_000_000_000,
        "model-00002-of-00002.safetensors": 1_000_000_000,
        "onnx/model.safetensors": 7_000_000_000,
    },
}
MakeConfig = Callable[..., Config]


class Hub:
    """Answers as the hub does, or with a fault for one repository."""

    def __init__(self, faults: Mapping[str, Exception] | None = None) -> None:
        self._faults = faults or {}

    def auth_check(self, repo: str) -> None:
        if repo in self._faults:
            raise self._faults[repo]

    def model_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert revision is None
        assert files_metadata
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in PUBLISHED[repo].items()])


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub, and no way to the hub itself."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into(cache: Path, repository: str, *names: str) -> None:
    """Write files as the hub's client caches them."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    for name in names:
        (folder / "snapshots" / "abc" / name).write_text("x")


def check(make_config: MakeConfig, name: str, hub: Hub | None = None, **options: object) -> FilesCheck:
    config = make_config(rewards=[{"name": "mine", "use": name, "options": options}, {"name": "brightness"}])
    found = check_reward_files(config, cast(HfApi, hub or Hub()))
    assert list(found) == ["mine"], "a reward without files is not spoken of"
    assert {finding.about for finding in found["mine"].findings} == {"reward mine"}
    return found["mine"]


@pytest.mark.parametrize("name", ["aesthetic", "clip_score", "geneval", "hpsv2", "imagereward", "pickscore"])
def test_the_check_looks_where_the_reward_does(name: str) -> None:
    module = __import__(f"mixgrpo.rewards.{name}", fromlist=["x"])
    makes = REWARDS[name] if name not in ("geneval", "imagereward") else type_of(module)
    defaults = {key: one.default for key, one in inspect.signature(makes).parameters.items()}
    asked = {k: p.default for k, p in inspect.signature(module.sources).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert len(asked) == 2
    assert asked == {key: defaults[key] for key in asked}
    assert [source.option for source in reward_sources(name, {})] != []
    for key in asked:
        (named,) = (source for source in reward_sources(name, {key: "somewhere/else"}) if source.option == key)
        assert named.path == "somewhere/else"


def type_of(module: Any) -> Any:
    return getattr(module, {"geneval": "GenEvalReward", "imagereward": "ImageReward"}[module.__name__.split(".")[-1]])


def test_what_has_to_be_downloaded_is_counted(make_config: MakeConfig, cache: Path) -> None:
    found = check(make_config, "hpsv2")
    assert [finding.state for finding in found.findings] == ["ok", "ok"]
    assert "xswu/HPSv2 is open to this account; 2 GB to download" in found.findings[0].text
    assert found.download == 2_002_000_000, "the checkpoint that is loaded, and one form of the tokenizer"
    assert not found.are_here
    put_into(cache, "xswu/HPSv2", "HPS_v2.1_compressed.pt")
    found = check(make_config, "hpsv2")
    assert "in the hub's cache" in found.findings[0].text
    assert found.download == 2_000_000
    put_into(cache, CLIP_H, "vocab.json", "merges.txt")
    found = check(make_config, "hpsv2", Hub({CLIP_H: AssertionError("there is nothing to ask")}))
    assert found.download == 0
    assert found.are_here


def test_weights_in_several_files_are_counted_whole(make_config: MakeConfig, cache: Path) -> None:
    put_into(cache, CLIP_H, "preprocessor_config.json", "tokenizer.json")
    assert check(make_config, "pickscore", path="anna/shards").download == 6_000_001_000


@pytest.mark.parametrize(
    ("fault", "text", "remedy"),
    [
        (refusal(GatedRepoError, 403), "xswu/HPSv2 is gated and this account has no access", "hf auth login"),
        (httpx2.ConnectError("no route"), "does not answer: no route", "hf download xswu/HPSv2 HPS_v2.1_compressed.pt"),
    ],
)
def test_why_files_on_the_hub_cannot_be_had(make_config: MakeConfig, fault: Exception, text: str, remedy: str) -> None:
    found = check(make_config, "hpsv2", Hub({"xswu/HPSv2": fault}))
    assert [finding.state for finding in found.findings] == ["problem", "ok"]
    assert text in found.findings[0].text
    assert remedy in found.findings[0].remedy
    assert found.download == 2_000_000


def test_a_repository_without_the_files_is_a_problem(make_config: MakeConfig) -> None:
    found = check(make_config, "hpsv2", path=CLIP_H)
    assert found.findings[0].state == "problem"
    assert "has no HPS_v2.1_compressed.pt" in found.findings[0].text


def test_files_in_folders_are_looked_for(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "ImageReward.safetensors").write_text("x")
    found = check(make_config, "imagereward", path=str(tmp_path), tokenizer=str(tmp_path))
    assert [finding.state for finding in found.findings] == ["problem", "problem"]
    assert "has no med_config.json" in found.findings[0].text
    assert "hf download THUDM/ImageReward" in found.findings[0].text
    (tmp_path / "med_config.json").write_text("{}")
    (tmp_path / "vocab.txt").write_text("a")
    assert check(make_config, "imagereward", path=str(tmp_path)).are_here


def test_a_package_that_is_missing_is_found_before_the_download(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards, "find_spec", lambda name: None)
    found = check(
        make_config, "clip_score", Hub({"apple/DFN5B-CLIP-ViT-H-14-378": httpx2.ConnectError("gone")}), tokenizer=CLIP_H
    )
    assert [finding.state for finding in found.findings] == ["problem", "ok", "problem"]
    assert "pip install 'mixgrpo[clip]'" in found.findings[2].text


def test_doctor_downloads_nothing_and_counts_it_on_the_disk(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "HfApi", Hub)
    config = make_config(rewards=[{"name": "hpsv2"}, {"name": "brightness"}])
    found = list(examine(config, quick=True))

    def about(name: str) -> list[Finding]:
        return [finding for finding in found if finding.about == name]

    assert [finding.state for finding in about("reward hpsv2")] == ["ok", "ok", "note"]
    assert "not made" in about("reward hpsv2")[2].text
    assert about("disk")[0].text.startswith("download: up to 2 GB in ")
    assert about("reward brightness")[0].text.startswith("made in ")
