"""A prompt's own negative prompt reaches the model in sampling, update and evaluation, or is refused at the start."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixgrpo.config.schema import Config
from mixgrpo.errors import ConfigError
from mixgrpo.train.loop import Trainer, train
from tests.models.families import TINY, save
from tests.tiny import HELDOUT, PROMPTS
from tests.train.test_compare import assert_same

NAME, NEGATIVE = "sd3.5-medium", "grey and blurry things"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(NAME, tmp_path_factory.mktemp("families") / "model")


def write(path: Path, prompts: list[str], negative: str) -> str:
    path.write_text("\n".join(json.dumps({"prompt": text, "negative_prompt": negative}) for text in prompts))
    return str(path)


@pytest.mark.parametrize("cached", [False, True])
def test_written_beside_every_prompt_it_trains_as_the_models_own_does(
    cached: bool, folder: Path, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    height, width = TINY[NAME].size
    model: dict[str, Any] = {"path": str(folder), "height": height, "width": width, "guidance_scale": 4.5}
    settings: dict[str, Any] = {"iterations": 2, "rollout": {"num_steps": 5}}
    train(make_config(model={**model, "negative_prompt": NEGATIVE}, **settings), tmp_path / "all")
    sources = {
        "train": write(tmp_path / "train.jsonl", PROMPTS, NEGATIVE),
        "heldout": write(tmp_path / "heldout.jsonl", HELDOUT, NEGATIVE),
    }
    others = {"negative_prompt": "something else", "prompt_cache": str(tmp_path / "cache") if cached else ""}
    train(make_config(model={**model, **others}, prompts=sources, **settings), tmp_path / "each")
    assert_same(tmp_path / "all", tmp_path / "each")


def test_without_a_guidance_it_is_refused_before_anything_is_drawn(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    config = make_config(prompts={"train": write(tmp_path / "train.jsonl", PROMPTS, NEGATIVE)})
    with pytest.raises(ConfigError, match=rf"such as '{NEGATIVE}', .*take the column negative_prompt out"):
        Trainer(config, tmp_path / "run", resume=False, sinks=())
