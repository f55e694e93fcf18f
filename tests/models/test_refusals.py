"""What a family cannot do is said when it is loaded."""

import importlib.util
import json
from pathlib import Path

import pytest

from mixgrpo.errors import ConfigError, ModelError
from tests.models.families import save
from tests.models.test_parity import load


@pytest.mark.parametrize(("name", "called"), [("flux2-dev", "FLUX.2"), ("flux2-klein", "a distilled FLUX.2 klein")])
def test_a_negative_prompt_that_nothing_reads(name: str, called: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model\.negative_prompt: {called} .*leave it empty"):
        load(name, save(name, tmp_path / "model"), negative_prompt="blurry")


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
