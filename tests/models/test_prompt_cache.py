"""Prompts are encoded once, and then the text encoders are not needed."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from mixgrpo.errors import ModelError
from mixgrpo.models import cache_prompts, prompt_cache
from tests.models.families import TINY, save
from tests.models.test_parity import LENGTH, PROMPTS, draw, load


@pytest.fixture(scope="module", params=list(TINY))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save(request.param, tmp_path_factory.mktemp("families") / "model")


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sd3", tmp_path_factory.mktemp("families") / "model")


def fill(folder: Path, cache: Path, prompts: list[str], **options: Any) -> int:
    return cache_prompts(str(folder), prompts, folder=cache, **{"max_sequence_length": LENGTH, **options})


def test_cached_prompts_draw_the_same_without_text_encoders(family: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = family
    negative = TINY[name].options.get("negative_prompt", "")
    assert fill(folder, tmp_path, [*PROMPTS, negative]) == 3
    cached = load(name, folder, prompt_cache=tmp_path)
    assert all(getattr(cached.pipeline, part) is None for part in cached.text_encoders)
    live = load(name, folder)
    assert all(getattr(live.pipeline, part) is not None for part in live.text_encoders)
    torch.testing.assert_close(draw(cached, PROMPTS), draw(live, PROMPTS), rtol=0, atol=1e-5)


def test_only_what_is_missing_is_encoded(sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fill(sd3, tmp_path, ["a", "b", "a"]) == 2
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    assert len(files) == 2
    told: list[tuple[int, int]] = []
    assert fill(sd3, tmp_path, ["b", "c", "a"], progress=lambda done, total: told.append((done, total))) == 1
    assert told == [(0, 1), (1, 1)]
    assert all(file.stat().st_mtime_ns == time for file, time in files.items())
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", None)  # nothing is missing, so nothing is loaded
    assert fill(sd3, tmp_path, ["a", "b", "c"]) == 0


def test_what_was_encoded_before_an_interruption_stays(sd3: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(sd3, tmp_path, ["a", "b", "c"], batch=1, progress=stop)
    assert not list(tmp_path.rglob("*.part"))
    assert fill(sd3, tmp_path, ["a", "b", "c"]) == 1


def _change_a_number(folder: Path) -> None:
    file = folder / "text_encoder_3" / "model.safetensors"
    weights = load_file(file)
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, file, metadata={"format": "pt"})


def _change_a_config(folder: Path) -> None:
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_act": "gelu"}))


def _add_a_template(folder: Path) -> None:
    (folder / "tokenizer_3" / "chat_template.jinja").write_text("{{ messages }}")


def _add_a_file_in_a_folder(folder: Path) -> None:
    (folder / "tokenizer_3" / "additional_chat_templates").mkdir()
    (folder / "tokenizer_3" / "additional_chat_templates" / "x.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize("change", [_change_a_number, _change_a_config, _add_a_template, _add_a_file_in_a_folder])
def test_a_model_that_changed_finds_nothing(sd3: Path, tmp_path: Path, change: Any) -> None:
    fill(sd3, tmp_path / "cache", PROMPTS)
    other = tmp_path / "model"
    shutil.copytree(sd3, other)
    assert fill(other, tmp_path / "cache", PROMPTS) == 0, "a copy is the same model"
    change(other)
    with pytest.raises(ModelError, match=r"'a red fox' is not in the prompt cache .*leave model\.prompt_cache empty"):
        draw(load("sd3", other, prompt_cache=tmp_path / "cache", guidance_scale=1.0), PROMPTS)
    assert fill(other, tmp_path / "cache", PROMPTS) == 2


def test_files_that_nothing_reads_change_nothing(sd3: Path, tmp_path: Path) -> None:
    fill(sd3, tmp_path / "cache", PROMPTS)
    other = tmp_path / "model"
    shutil.copytree(sd3, other)
    (other / "text_encoder" / "pytorch_model.bin").write_bytes(b"weights in another form")
    (other / "tokenizer_3" / ".DS_Store").write_bytes(b"x")
    (other / "README.md").write_text("a card")
    assert fill(other, tmp_path / "cache", PROMPTS) == 0


def _upgrade(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    installed = prompt_cache.version
    monkeypatch.setattr(prompt_cache, "version", lambda asked: "99.0" if asked == name else installed(asked))


def _take_away_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_spec("ftfy") is not None
    monkeypatch.setattr(prompt_cache, "find_spec", lambda name: None if name == "ftfy" else find_spec(name))


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: _upgrade(patch, "diffusers"),
        lambda patch: _upgrade(patch, "transformers"),
        _take_away_ftfy,
        lambda patch: patch.setattr(prompt_cache, "_ENCODING", prompt_cache._ENCODING + 1),
    ],
    ids=["diffusers", "transformers", "ftfy", "encoding"],
)
def test_other_code_finds_nothing(
    change: Callable[[pytest.MonkeyPatch], None], sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fill(sd3, tmp_path, ["a"]) == 1
    assert fill(sd3, tmp_path, ["a"]) == 0
    change(monkeypatch)
    assert fill(sd3, tmp_path, ["a"]) == 1


def test_another_pipeline_of_the_same_parts_finds_nothing(sd3: Path) -> None:
    parts = ["text_encoder", "tokenizer"]
    names = {prompt_cache.fingerprint(sd3, parts, pipeline=name) for name in ("Flux2Pipeline", "Flux2KleinPipeline")}
    assert len(names) == 2


@pytest.mark.parametrize("name", ["sd3", "flux2-klein", "hunyuanvideo"])
def test_text_encoders_are_gone_when_the_model_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By themselves: nothing refers to them, and there are no circles that would wait for the garbage collector."""
    folder = save(name, tmp_path / "model")
    weights: list[weakref.ref[torch.Tensor]] = []
    from_pretrained = DiffusionPipeline.from_pretrained
    alive: list[int] = []

    def spy(*args: Any, **kwargs: Any) -> Any:
        alive.append(sum(ref() is not None for ref in weights))
        pipeline = from_pretrained(*args, **kwargs)
        networks = (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module))
        weights.extend(weakref.ref(weight) for network in networks for weight in network.parameters())
        return pipeline

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", spy)
    gc.collect()
    gc.disable()
    try:
        assert fill(folder, tmp_path / "cache", PROMPTS) == 2
        assert len(weights) > 10
        load(name, folder, prompt_cache=tmp_path / "cache")
    finally:
        gc.enable()
    assert alive == [0, 0]


def test_length_and_type_have_entries_of_their_own(sd3: Path, tmp_path: Path) -> None:
    assert fill(sd3, tmp_path, PROMPTS) == 2
    assert fill(sd3, tmp_path, PROMPTS, max_sequence_length=LENGTH // 2) == 2
    assert fill(sd3, tmp_path, PROMPTS, dtype="bfloat16") == 2


def test_another_transformer_shares_the_entries(sd3: Path, tmp_path: Path) -> None:
    fill(sd3, tmp_path / "cache", PROMPTS)
    other = tmp_path / "model"
    shutil.copytree(sd3, other)
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 0.1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    assert fill(other, tmp_path / "cache", PROMPTS) == 0


def test_a_damaged_entry_is_named(sd3: Path, tmp_path: Path) -> None:
    fill(sd3, tmp_path, ["a"])
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"is damaged.*delete it"):
        draw(load("sd3", sd3, prompt_cache=tmp_path, guidance_scale=1.0), ["a"])


def test_a_model_without_text_encoders_is_saved_whole(sd3: Path, tmp_path: Path) -> None:
    fill(sd3, tmp_path / "cache", [*PROMPTS, ""])
    model = load("sd3", sd3, prompt_cache=tmp_path / "cache")
    model.save(tmp_path / "saved")
    torch.testing.assert_close(draw(load("sd3", tmp_path / "saved"), PROMPTS), draw(model, PROMPTS), rtol=0, atol=1e-5)
