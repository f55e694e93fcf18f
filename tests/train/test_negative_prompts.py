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

NAME, NEGATIVE = "sd3.5-medium", "grey and blurry things"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(NAME, tmp_path_factory.mktemp("families") / "model")


def write(path: Path, prompts: list[str], negative: str) -> str:
    path.write_text("\n".join(json.dumps({"prompt": text, "negative_prompt": negative}) for text in prompts))
    return str(path)


def heldout(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["rewards"]["brightness"] for row in rows if row["kind"] == "eval"]


def test_written_beside_every_prompt_it_trains_as_the_models_own_does(
    folder: Path, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    height, width = TINY[NAME].size
    model: dict[str, Any] = {"path": str(folder), "height": height, "width": width, "guidance_scale": 4.5}
    sources = {
        "train": write(tmp_path / "train.jsonl", PROMPTS, NEGATIVE),
        "heldout": write(tmp_path / "heldout.jsonl", HELDOUT, NEGATIVE),
    }
    other, cached = {"negative_prompt": "others"}, {"prompt_cache": str(tmp_path / "cache")}
    runs = {
        "for all": make_config(iterations=2, model={**model, "negative_prompt": NEGATIVE}),
        "for each": make_config(iterations=2, model={**model, **other}, prompts=sources),
        "cached": make_config(iterations=2, model={**model, **other, **cached}, prompts=sources),
        "other": make_config(iterations=2, model={**model, **other}),
    }
    for name, config in runs.items():
        train(config, tmp_path / name)
    expected = heldout(tmp_path / "for all")
    assert len(expected) == 2
    # prompts are encoded in other company, so not to the last bit
    assert heldout(tmp_path / "for each") == pytest.approx(expected, abs=2e-5)
    assert heldout(tmp_path / "cached") == pytest.approx(expected, abs=2e-5)
    assert heldout(tmp_path / "other") != pytest.approx(expected, abs=2e-4)


def test_without_a_guidance_it_is_refused_before_anything_is_drawn(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    config = make_config(prompts={"train": write(tmp_path / "train.jsonl", PROMPTS, NEGATIVE)})
    with pytest.raises(ConfigError, match=rf"such as '{NEGATIVE}', .*take the column negative_prompt out"):
        Trainer(config, tmp_path / "run", resume=False, sinks=())
