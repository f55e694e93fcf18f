"""The model card of an export: README.md with the hub's metadata, as a stranger needs it to judge and use the model."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from mixgrpo.report.appendix import flatten, prompts_in_words
from mixgrpo.report.card_method import method_source, method_title, training_command
from mixgrpo.report.card_pictures import BeforeAfter, before_after, copy_single, write_grid
from mixgrpo.report.exported import Exported, loading_code
from mixgrpo.report.read import Run, read_run
from mixgrpo.report.rows import EvalRow
from mixgrpo.report.summary import Figure, Summary, estimate, summarise
from mixgrpo.report.text import change, count, duration, listing, value
from mixgrpo.shapes.files import BUNDLED, is_hub_id

GRID = "samples.png"
"""The card's picture, beside it."""

_LICENCE_FIELDS = ("license", "license_name", "license_link")
_MAX_ROWS = 12
_ABOUT = {
    "prompts_per_iteration": "prompts per iteration",
    "rollout.group_size": "samples per prompt",
    "rollout.num_steps": "denoising steps in training",
    "rollout.kernel": "stochastic step",
    "rollout.eta": "its strength eta",
    "window.type": "window",
    "window.size": "steps in the window",
    "window.interval": "iterations between its moves",
    "loss.type": "loss",
    "loss.clip_range": "clip range",
    "loss.kl_weight": "weight of the divergence to the base model",
    "loss.updates_per_iteration": "updates per iteration",
    "optim.lr": "learning rate (AdamW)",
    "optim.ema_decay": "decay of the averaged weights, which are exported",
    "lora.rank": "rank of the adapter",
    "lora.alpha": "alpha of the adapter",
    "seed": "seed",
}
"""Settings that a card names; all others are in the run's own report."""


def write_card(path: Path, folder: Path, exported: Exported, *, where: str, base_folder: Path | None = None) -> None:
    """Write README.md and its picture into `folder`, from what the run at `path` has kept.

    Args:
        path: the run.
        folder: the export.
        exported: what the export says of itself.
        where: what the card calls the export where it shows how to load it: its id on the hub, or a folder's name.
        base_folder: where the base model is; if it has a card of its own, that says the licence.

    Raises:
        CheckpointError: if the run's files are damaged.
    """
    run = read_run(path)
    pictures = before_after(run, exported.iteration)
    gallery: dict[str, str] = {}
    if pictures is not None:
        write_grid(pictures, folder / GRID)
        gallery = dict(zip(pictures.prompts, copy_single(pictures, folder), strict=False))
    licence = find_licence(exported.base, base_folder)
    sections = [
        _title(run, exported, pictures),
        _usage(run, exported, where),
        _rewards(run),
        _figures(summarise(run), exported),
        _method(run, exported),
        _licence_words(exported, licence),
    ]
    text = f"---\n{_metadata(exported, licence, gallery)}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def find_licence(base: str, folder: Path | None = None) -> dict[str, str]:
    """Return what is known of a base model's licence, in the hub's fields and `note`; empty if nothing is."""
    card = None if folder is None else folder / "README.md"
    if card is not None and card.is_file() and (metadata := metadata_load(card)) and metadata.get("license"):
        found = {name: str(metadata[name]) for name in _LICENCE_FIELDS if name in metadata}
        if not found.get("license_link", "https://").startswith("https://"):  # a file there, which is not here
            del found["license_link"]
        return found
    return _known("licences").get(base, {})


def base_label(base: str) -> str:
    """Return what others are told of a base model: its name, of a folder on this machine only the last part."""
    return base if base in BUNDLED or is_hub_id(base) else Path(base).name


def _known(table: str) -> dict[str, dict[str, str]]:
    return tomllib.loads((resources.files("mixgrpo.report") / "assets" / "card.toml").read_text("utf-8"))[table]


def _metadata(exported: Exported, licence: Mapping[str, str], gallery: Mapping[str, str]) -> str:
    stated = {name: licence[name] for name in _LICENCE_FIELDS if name in licence}
    if not stated:
        stated = {"license": "other", "license_name": "see-base-model"}
        if is_hub_id(exported.base):
            stated["license_link"] = f"https://huggingface.co/{exported.base}"
    kind = "text-to-video" if exported.is_video else "text-to-image"
    tags = ["diffusers", kind, "mixgrpo", "reinforcement-learning", *(["lora"] if exported.is_adapter else [])]
    data: dict[str, Any] = {**stated, "library_name": "diffusers", "pipeline_tag": kind, "tags": tags}
    if is_hub_id(exported.base):
        data["base_model"] = exported.base
        data["base_model_relation"] = "adapter" if exported.is_adapter else "finetune"
    if gallery:
        data["widget"] = [{"text": prompt, "output": {"url": file}} for prompt, file in gallery.items()]
    text = ModelCardData(**data).to_yaml()
    return f"{text}\ninstance_prompt: null" if exported.is_adapter else text  # no word has to be in a prompt


def _title(run: Run, exported: Exported, pictures: BeforeAfter | None) -> str:
    what = f"{'A LoRA adapter for ' if exported.is_adapter else ''}{_link(exported.base)}"
    name = f"{exported.run}, {'a LoRA adapter' if exported.is_adapter else 'post-trained'}"
    rewards = listing([f"`{reward['name']}`" for reward in _reward_settings(run) if reward.get("weight", 1.0) > 0])
    lines = [
        f"# {name}",
        f"{what}, post-trained on the {'reward' if ',' not in rewards and ' and ' not in rewards else 'rewards'}"
        f" {rewards} with {method_title(run)}, {count(exported.iteration, 'iteration')}.",
    ]
    if pictures is not None:
        lines.append(f"![Held-out prompts before and after]({GRID})")
        lines.append(
            "Held-out prompts, which training never saw, from the same noise: the base model's above, this model's "
            "below."
        )
        lines.append("\n".join(f"{number}. {_plain(text)}" for number, text in enumerate(pictures.prompts, 1)))
    elif exported.iteration == 0:
        lines.append("**The best held-out figures were those of the untouched base model, so this is that model.**")
    return "\n\n".join(lines)


def _usage(run: Run, exported: Exported, where: str) -> str:
    base = "" if base_label(exported.base) == exported.base else f"path/to/{base_label(exported.base)}"
    code = loading_code(exported, where, prompt=run.prompts[0] if run.prompts else "a prompt", base=base)
    text = "## Use\n\n```python\n" + "\n".join(code) + "\n```"
    if (shift := run.setting("rollout.shift")) is not None:
        text += (
            "\n\nThis draws with the pipeline's own noise schedule. Held-out pictures and figures were drawn as in "
            f"training, with time shift {shift:g}: sigma = {shift:g} u / (1 + ({shift:g} - 1) u), for even steps of u "
            "from 1 down to 0. The same noise can give other pictures."
        )
    if exported.has_comfyui:
        place = "" if exported.is_adapter else "lora/"
        text += (
            f"\n\nIn ComfyUI: put `{place}comfyui_lora.safetensors` into `models/loras` and load it with "
            "LoraLoaderModelOnly at strength 1. The other file lacks the adapter's scale there."
        )
    return text


def _rewards(run: Run) -> str:
    known, rows = _known("rewards"), []
    for reward in _reward_settings(run):
        use = reward.get("use") or reward["name"]
        about = known.get(use, {"what": f"`{use}`" if ":" in use else f"the reward `{use}` of mixgrpo"})
        source = f" ([source]({about['source']}))" if "source" in about else ""
        weight = f"{reward.get('weight', 1.0):g}" if reward.get("weight", 1.0) else "0: only measured"
        if reward.get("evaluation_only"):
            weight = "0: judges held-out pictures only"
        rows.append((f"`{reward['name']}`", weight, f"{about['what']}{source}"))
    return "## Rewards\n\n" + _table(("reward", "weight", "what it measures"), rows)


def _reward_settings(run: Run) -> list[dict[str, Any]]:
    rewards = run.setting("rewards")
    return [dict(reward) for reward in rewards if isinstance(reward, dict)] if isinstance(rewards, list) else []


def _figures(summary: Summary, exported: Exported) -> str:
    if not summary.evals:
        return ""
    rows = summary.evals
    first, here = ({row.iteration: row for row in rows}.get(number) for number in (0, exported.iteration))
    steps = exported.call.get("num_inference_steps")
    parts = [
        "## Held-out figures",
        f"Means over {count(summary.num_prompts, 'held-out prompt')}, {steps} steps without noise on the way, always "
        "from the same starting noise.",
    ]
    if first is not None and here is not None and here is not first:
        parts.append(
            _table(
                ("figure", "base model", "this model", "change ± standard error"),
                [
                    (f"`{each.name}`", _value(first, each), _value(here, each), _change(first, here, each))
                    for each in summary.figures
                ],
            )
        )
    rewards = [each for each in summary.figures if "/" not in each.name]
    parts.append("Over the run; the row in bold is this model:")
    parts.append(
        _table(
            ("iteration", *(f"`{each.name}`" for each in rewards)),
            [_figure_row(row, rewards, exported.iteration) for row in _chosen(rows, exported.iteration)],
        )
    )
    return "\n\n".join(parts)


def _value(row: EvalRow, figure: Figure) -> str:
    return value(estimate(row, figure.name).mean, share=figure.is_share)


def _figure_row(row: EvalRow, figures: Sequence[Figure], exported: int) -> tuple[str, ...]:
    cells = (str(row.iteration), *(_value(row, each) for each in figures))
    return tuple(f"**{cell}**" for cell in cells) if row.iteration == exported else cells


def _change(first: EvalRow, here: EvalRow, figure: Figure) -> str:
    before, after = estimate(first, figure.name), estimate(here, figure.name)
    text = change(after.mean - before.mean, share=figure.is_share)
    error = math.hypot(before.error, after.error)
    if not math.isfinite(error):
        return text
    return f"{text} ± {change(error, share=figure.is_share).lstrip('+').removesuffix(' points')}"


def _chosen(evals: Sequence[EvalRow], exported: int) -> list[EvalRow]:
    """Return at most `_MAX_ROWS` evaluations: first, last, the exported one, and others evenly between."""
    if len(evals) <= _MAX_ROWS:
        return list(evals)
    apart = (len(evals) - 1) / (_MAX_ROWS - 2)
    kept = {round(number * apart) for number in range(_MAX_ROWS - 1)}
    return [row for number, row in enumerate(evals) if number in kept or row.iteration == exported]


def _method(run: Run, exported: Exported) -> str:
    settings = dict(flatten(run.config))
    wanted = [name for name in _ABOUT if name in settings and settings[name] not in ("", "0", "0.0")]
    if not exported.is_adapter and settings.get("lora.rank", "0") == "0":
        wanted = [name for name in wanted if not name.startswith("lora.")]
    rows = (
        [("image", f"{settings['model.width']} x {settings['model.height']} pixels")]
        if "model.width" in settings
        else []
    )
    rows += prompts_in_words(run)
    rows += [(_ABOUT[name], f"{settings[name]}") for name in wanted]
    versions = run.sessions[-1].versions if run.sessions else {}
    description = str(run.setting("description") or "").rstrip(".")
    lines = [
        "## How it was trained",
        f"{description}." if description else "",
        "Images are drawn in groups from the same prompt, scored by the rewards, and the model is moved towards what "
        f"scored above its group. {method_source(run)}",
        _table(("setting", ""), rows),
        f"Running time {duration(run.seconds)} on {versions.get('machine', 'an unknown machine')}, with mixgrpo "
        f"{exported.version}, torch {versions.get('torch', 'unknown')}. Checkpoint: {exported.step}.",
    ]
    if command := training_command(run):
        lines.append(f"```sh\n{command}\n```")
    return "\n\n".join(line.rstrip() for line in lines if line)


def _licence_words(exported: Exported, licence: Mapping[str, str]) -> str:
    base = _link(exported.base)
    if "license" not in licence:
        return (
            f"## Licence\n\nNot known here: see the base model, {base}. Its licence holds for what is trained from it."
        )
    name = licence.get("license_name") or licence["license"]
    if "license_link" in licence:
        name = f"[{name}]({licence['license_link']})"
    return f"## Licence\n\nThat of the base model, {base}: {name}. {licence.get('note', '')}".rstrip()


def _link(base: str) -> str:
    label = base_label(base)
    return f"[{label}](https://huggingface.co/{label})" if is_hub_id(base) else f"`{label}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _plain(text: str) -> str:
    """Return a prompt such that Markdown shows it as it is."""
    text = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|~" else letter for letter in text)
