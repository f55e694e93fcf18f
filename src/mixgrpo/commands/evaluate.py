"""`mixgrpo evaluate`: how a model does on held-out prompts, by ODE sampling from fixed noise."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich import box
from rich.table import Table

from mixgrpo.commands.common import Parser, at_least_one, terminal, zero_or_more
from mixgrpo.commands.models import (
    Drawing,
    add_drawing_arguments,
    add_prompts_arguments,
    check_column,
    draw_with,
    drawing_memory,
    drawing_progress,
    load_models,
    read_drawing,
    settle_dtype,
    tell_cut,
    tell_left_out,
)
from mixgrpo.config.sections import EvalConfig, RewardConfig
from mixgrpo.errors import ConfigError

if TYPE_CHECKING:
    from mixgrpo.train.scores import Means


def run(args: Sequence[str]) -> int:
    """Draw and score, and print the means."""
    found = make_parser().read(args)
    check_column(found)
    drawing = read_drawing(found, seed=None)
    known = drawing.source.known
    rewards = _read_rewards(found.rewards, drawing)
    count = found.num_prompts or (known.eval.num_prompts if known and not found.prompts else 0)
    prompts = _read_prompts(found, drawing)[: count or None]
    repeated = _read_repeated(found, drawing)
    drawing = settle_dtype(drawing)
    means, diversity = _measure(drawing, prompts, rewards, repeated)
    if found.json:
        print(json.dumps(_as_dict(drawing, prompts, means) | diversity, indent=2))
    else:
        _show(means, len(prompts))
        _show_diversity(diversity, min(repeated[0], len(prompts)), repeated[1])
    return 0


def make_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "evaluate",
        "Draw held-out prompts and score them. What is not given is taken from the run, or from a preset.",
    )
    add_drawing_arguments(parser)
    add_prompts_arguments(parser)
    parser.add_argument("--num-prompts", metavar="N", type=at_least_one, help="take only the first N prompts")
    parser.add_argument(
        "--rewards",
        metavar="NAME",
        nargs="+",
        help="built-in rewards or import paths (default: those of the run)",
    )
    parser.add_argument(
        "--diversity-prompts",
        metavar="N",
        type=zero_or_more,
        help="draw the first N prompts several times and tell how much the images differ (default: as in the run, 8)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def _read_prompts(found: Namespace, drawing: Drawing) -> Sequence[str]:
    from mixgrpo.data.prompts import read_prompts
    from mixgrpo.data.sets import load_heldout

    known = drawing.source.known
    if found.prompts:
        read = read_prompts(found.prompts, column=found.column or (known.prompts.column if known else "prompt"))
    elif known:
        read = load_heldout(known)
    else:
        raise ConfigError(f"no prompts are known for the model {drawing.source.name}: give --prompts FILE")
    tell_left_out(read)
    return read.prompts


def _read_rewards(names: Sequence[str] | None, drawing: Drawing) -> Sequence[RewardConfig]:
    if names:
        return [_reward(name) for name in dict.fromkeys(names)]
    if drawing.source.known is None:
        raise ConfigError(f"no rewards are known for the model {drawing.source.name}: give --rewards NAME ...")
    return drawing.source.known.rewards


def _reward(use: str) -> RewardConfig:
    try:
        return RewardConfig(name=use.rpartition(":")[2], use=use)
    except ValidationError:
        raise ConfigError(f"{use!r} is neither a built-in reward nor an import path package.module:factory") from None


def _read_repeated(found: Namespace, drawing: Drawing) -> tuple[int, int]:
    """Return of how many prompts, and how many images of each, the diversity is taken."""
    known = drawing.source.known
    settings = known.eval if known else EvalConfig(num_steps=drawing.num_steps)
    asked = found.diversity_prompts
    return settings.diversity_prompts if asked is None else asked, settings.diversity_samples


def _measure(
    drawing: Drawing, prompts: Sequence[str], rewards: Sequence[RewardConfig], repeated: tuple[int, int]
) -> "tuple[Means, dict[str, float]]":
    from mixgrpo.rewards import make_reward
    from mixgrpo.rewards.scorer import Scorer
    from mixgrpo.train.diversity import STREAM, measure_diversity
    from mixgrpo.train.inference import score_batches

    with drawing_memory(drawing, "loading the rewards"):
        made = {reward.name: make_reward(reward.use or reward.name, reward.options) for reward in rewards}
    scorer = Scorer(made, timeout={reward.name: reward.timeout for reward in rewards})
    try:
        models = load_models(drawing)
        tell_cut(models[0], prompts, drawing.model.max_sequence_length)
        batches = draw_with(models, drawing, prompts)
        with drawing_progress(len(prompts)) as tell, drawing_memory(drawing, "drawing"):
            means = score_batches(batches, prompts, scorer, on_images=lambda rows, images: tell(rows.stop))
    finally:
        scorer.close()
    some, samples = prompts[: repeated[0]], repeated[1]
    if not some:
        return means, {}
    with drawing_memory(drawing, "drawing several images of a prompt"):
        diversity = measure_diversity(partial(draw_with, models, drawing, stream=STREAM), some, samples)
    return means, {"diversity": diversity}


def _as_dict(drawing: Drawing, prompts: Sequence[str], means: "Means") -> dict[str, object]:
    return {
        "model": drawing.source.name,
        "dtype": drawing.model.dtype,
        "which": drawing.which if drawing.source.run else None,
        "base": drawing.base,
        "tuned_fraction": drawing.tuned_fraction,
        "num_prompts": len(prompts),
        "num_steps": drawing.num_steps,
        "shift": drawing.shift,
        "seed": drawing.seed,
        "rewards": means.rewards,
        "details": means.details,
        "standard_errors": means.standard_errors,
        "failed": means.failed,
    }


def _show(means: "Means", num_prompts: int) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(f"mean of {num_prompts} images")
    for heading in ("", "standard error", "not scored"):
        table.add_column(heading, justify="right")
    for name, value in (means.rewards | means.details).items():
        error, failed = means.standard_errors.get(name), means.failed.get(name)
        cells = (
            f"{value:.4f}",
            "" if error is None else f"{error:.4f}",
            "" if failed is None else str(failed),
        )
        table.add_row(name, *cells)
    terminal().print(table)


def _show_diversity(diversity: Mapping[str, float], num_prompts: int, samples: int) -> None:
    for name, value in diversity.items():
        terminal().print(f"\n{name} {value:.4f}, of {samples} images for each of {num_prompts} prompts")
