"""The prompts of a dry run: those of the run, unless they are on the hub and not in its cache."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import PromptsConfig, RewardConfig
from mixgrpo.data.formats import HUB, hub_file
from mixgrpo.data.prompts import load_prompts
from mixgrpo.data.sets import is_on_hub
from mixgrpo.rewards.judging import TEMPLATES

_BUNDLED = {"train": "signs-train", "heldout": "signs-heldout"}
_SCENE = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}
"""Columns in GenEval's format."""


class PromptsUsed(NamedTuple):
    """Where the prompts of a dry run come from."""

    settings: PromptsConfig
    notes: tuple[str, ...] = ()
    """What was replaced, and what reading the real ones needs."""


def prompts_for(config: Config, folder: Path) -> PromptsUsed:
    """Return the prompts of the run, or bundled ones, with the columns that its rewards read, written to `folder`."""
    settings = config.prompts
    if not is_on_hub(settings):
        return PromptsUsed(settings)
    sources = [source for source in (settings.train, settings.heldout) if source.startswith(HUB)]
    if all(_is_cached(source) for source in sources):
        return PromptsUsed(settings)
    folder.mkdir(parents=True, exist_ok=True)
    columns = _columns(config.rewards)
    files: dict[str, str] = {}
    for name, bundled in _BUNDLED.items():
        lines = [json.dumps({settings.column: str(prompt), **columns}) for prompt in load_prompts(bundled)]
        files[name] = str(folder / f"{name}.jsonl")
        Path(files[name]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    notes = [f"prompts: {' and '.join(sources)} not in the cache; bundled prompts took their place"]
    if find_spec("datasets") is None and any(hub_file(source) is None for source in sources):
        notes.append("prompts: the run needs the package 'datasets': pip install 'mixgrpo[datasets]'")
    return PromptsUsed(PromptsConfig(**files, column=settings.column), tuple(notes))


def _is_cached(source: str) -> bool:
    if (file := hub_file(source)) is not None:
        return isinstance(try_to_load_from_cache(*file, repo_type="dataset"), str)
    if find_spec("datasets") is None:
        return False
    import datasets  # noqa: PLC0415  # pyright: ignore[reportMissingImports] - comes with an extra

    name = source.removeprefix(HUB).partition(":")[0]
    return (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir()


def _columns(rewards: tuple[RewardConfig, ...]) -> dict[str, Any]:
    """Return columns for every prompt, such as the rewards read: GenEval's, and those in a judge's template."""
    columns: dict[str, Any] = {}
    for reward in rewards:
        use = reward.use or reward.name
        if use == "geneval":
            columns |= _SCENE
        if use == "vlm":
            template = str(reward.options.get("template", "default"))
            names = re.findall(r"\{(\w+)\}", TEMPLATES.get(template, template))
            columns |= {name: "stand-in" for name in names if name != "prompt" and name not in columns}
    return columns
