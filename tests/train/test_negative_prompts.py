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


def figures(run: Path) -> tuple[list[float], list[float]]:
    """Held-out figures before and after training, and the gradients between them, which are of the samples drawn."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = [row["rewards"]["brightness"] for row in rows if row["kind"] == "eval"]
    return judged, [row["grad_norm"] for row in rows if row["kind"] == "train"]


def test_written_beside_every_prompt_it_trains_as_the_models_own_does(
    folder: Path, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    height, width = TINY[NAME].size
    model: dict[str, Any] = {"path": str(folder), "height": height, "width": width, "guidance_scale": 12.0}
    sources = {
        "train": write(tmp_path / "train.jsonl", PROMPTS, NEGATIVE),
        "heldout": write(tmp_path / "heldout.jsonl", HELDOUT, NEGATIVE),
    }
    other, cached = {"negative_prompt": "others"}, {"prompt_cache": str(tmp_path / "cache")}
    settings: dict[str, Any] = {"iterations": 2, "optim": {"lr": 1e-7}}
    runs = {
        "for all": make_config(model={**model, "negative_prompt": NEGATIVE}, **settings),
        "for each": make_config(model={**model, **other}, prompts=sources, **settings),
        "cached": make_config(model={**model, **other, **cached}, prompts=sources, **settings),
        "other": make_config(model={**model, **other}, **settings),
    }
    for name, config in runs.items():
        train(config, tmp_path / name)
    judged, gradients = figures(tmp_path / "for all")
    assert len(judged) == len(gradients) == 2
    for name in ("for each", "cached"):  # prompts are encoded in other company, so not to the last bit
        other_judged, other_gradients = figures(tmp_path / name)
        assert other_judged == pytest.approx(judged, rel=1e-5)
        assert other_gradients == pytest.approx(gradients, rel=0.03)
    other_judged, other_gradients = figures(tmp_path / "other")
    for figure, usual in zip(other_judged, judged, strict=True):
        assert figure != pytest.approx(usual, rel=1e-3)
    for figure, usual in zip(other_gradients, gradients, strict=True):
        assert figure != pytest.approx(usual, rel=0.2)


def test_without_a_guidance_it_is_refused_before_anything_is_drawn(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    config = make_config(prompts={"train": write(tmp_path / "train.jsonl", PROMPTS, NEGATIVE)})
    with pytest.raises(ConfigError, match=rf"such as '{NEGATIVE}', .*take the column negative_prompt out"):
        Trainer(config, tmp_path / "run", resume=False, sinks=())
