"""What a family cannot do is said when it is loaded, or before."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from mixgrpo.errors import ConfigError, ModelError
from mixgrpo.models import refuse_unread_negatives
from tests.models.families import TINY, save
from tests.models.test_parity import load

UNREAD = {name: tiny for name, tiny in TINY.items() if tiny.calls == 1}
"""Families, and settings of them, that have no negative prompt."""


@pytest.mark.parametrize("name", list(UNREAD))
def test_a_negative_prompt_that_nothing_reads(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.negative_prompt: .* nothing reads it; leave it empty"):
        load(name, save(name, tmp_path / "model"), negative_prompt="blurry")


@pytest.mark.parametrize("name", list(TINY))
def test_it_is_known_from_the_index_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    shutil.copyfile(save(name, tmp_path / "model") / "model_index.json", folder / "model_index.json")
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", None)
    scale = TINY[name].options.get("guidance_scale", 3.5)
    refuse_unread_negatives(str(folder), ["", ""], guidance_scale=scale)
    if name not in UNREAD:
        refuse_unread_negatives(str(folder), ["", "ugly"], guidance_scale=scale, negative_prompt="blurry")
        return
    with pytest.raises(ConfigError, match=r"negative prompts \(1 do\), such as 'ugly', .*take the column"):
        refuse_unread_negatives(str(folder), ["", "ugly"], guidance_scale=scale)
    with pytest.raises(ConfigError, match=r"model\.negative_prompt: .*leave it empty"):
        refuse_unread_negatives(str(folder), [], guidance_scale=scale, negative_prompt="blurry")


def test_negatives_of_a_bundled_model_and_of_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"FLUX\.1 has no classifier-free guidance with model\.guidance_scale 2\.5"):
        refuse_unread_negatives("flux-nano", ["ugly"], guidance_scale=2.5)
    with pytest.raises(ModelError, match="neither a bundled model"):
        refuse_unread_negatives(str(tmp_path), ["ugly"], guidance_scale=2.5)


def test_qwen_image_has_a_longest_prompt_and_no_distilled_guidance(tmp_path: Path) -> None:
    folder = save("qwen-image", tmp_path / "model")
    with pytest.raises(ConfigError, match=r"max_sequence_length \(1025\) can be at most 1024"):
        load("qwen-image", folder, max_sequence_length=1025)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"guidance_embeds": True}))
    with pytest.raises(ModelError, match="guidance embeddings"):
        load("qwen-image", folder)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="needs a machine without torchvision")
def test_a_part_that_needs_another_library_names_it(tmp_path: Path) -> None:
    """FLUX.2-dev comes with a processor of pictures and text."""
    index = save("flux2-dev", tmp_path / "model") / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"tokenizer": ["transformers", "PixtralProcessor"]}))
    with pytest.raises(ModelError, match=r"cannot be loaded: .*Torchvision"):
        load("flux2-dev", index.parent)
