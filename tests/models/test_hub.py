"""A model on the hub is loaded by its id, and one that cannot be had is one clear error. The hub is a cache on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file

from mixgrpo.errors import ConfigError, ModelError
from mixgrpo.models import load_model, refuse_unread_negatives
from mixgrpo.models.pipeline import PipelineModel
from tests.doctor.test_doctor import refusal
from tests.models.families import TINY, save
from tests.models.test_parity import LENGTH, PROMPTS, draw

NAME, HUB_ID = "flux-dev", "anna/tiny-flux"
FIRST, SECOND = "a" * 40, "b" * 40
"""Commits of the branches main and brighter."""


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub, and no way to the hub itself."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def repository(cache: Path) -> Path:
    """Two commits of a repository as the hub's client keeps them; returns the folder of both."""
    folder = cache / f"models--{HUB_ID.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    for branch, commit in (("main", FIRST), ("brighter", SECOND)):
        (folder / "refs" / branch).write_text(commit)
        save(NAME, folder / "snapshots" / commit)
    weights = folder / "snapshots" / SECOND / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor + 0.1 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder / "snapshots"


def load(path: str, **options: Any) -> PipelineModel:
    height, width = TINY[NAME].size
    model = load_model(path, height=height, width=width, max_sequence_length=LENGTH, **options)
    assert isinstance(model, PipelineModel)
    return model


@pytest.mark.parametrize(("revision", "commit"), [("", FIRST), ("main", FIRST), ("brighter", SECOND), (SECOND, SECOND)])
def test_a_model_is_loaded_by_its_id_and_revision(revision: str, commit: str, repository: Path) -> None:
    model = load(HUB_ID, revision=revision)
    assert model.source == repository / commit
    by_folder = {name: draw(load(str(repository / name)), PROMPTS[:1]) for name in (FIRST, SECOND)}
    assert not torch.allclose(by_folder[FIRST], by_folder[SECOND], atol=1e-3)
    assert torch.equal(draw(model, PROMPTS[:1]), by_folder[commit])


def test_a_negative_prompt_is_refused_by_the_index_of_a_model_on_the_hub(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiffusionPipeline, "download", None)
    with pytest.raises(ConfigError, match="negative prompts"):
        refuse_unread_negatives(HUB_ID, ["ugly"], guidance_scale=3.5)
    index = repository / SECOND / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "StableDiffusion3Pipeline"}))
    refuse_unread_negatives(HUB_ID, ["ugly"], guidance_scale=3.5, revision="brighter")


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize(("path", "revision"), [("nobody/nothing", ""), (HUB_ID, "no-such-branch")])
def test_what_is_not_there_is_one_error(path: str, revision: str) -> None:
    with pytest.raises(ModelError, match=rf"^model '{path}' cannot be downloaded: \S") as caught:
        load(path, revision=revision)
    assert "\n" not in str(caught.value)


def test_a_gated_repository_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise refusal(GatedRepoError, 403)

    monkeypatch.setattr("mixgrpo.models.registry.hf_hub_download", refuse)
    with pytest.raises(
        ModelError, match=r"cannot be downloaded: .*accept.*https://huggingface\.co/anna/gated"
    ) as caught:
        load("anna/gated")
    assert "hf auth login" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_family_without_adapter_is_named_before_its_weights_are_downloaded(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / FIRST / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXPipeline"}))
    monkeypatch.setattr(DiffusionPipeline, "download", None)
    with pytest.raises(
        ModelError, match="'anna/tiny-flux' is of the pipeline 'CogVideoXPipeline', which has no adapter"
    ):
        load(HUB_ID)


def test_a_download_that_breaks_off_is_one_error(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("the hub\nhung up")

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    with pytest.raises(ModelError, match="cannot be downloaded: the hub hung up"):
        load(HUB_ID)
