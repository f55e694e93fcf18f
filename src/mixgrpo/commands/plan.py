"""`mixgrpo plan`: what a run would do and cost in model calls, before anything is loaded. No torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from mixgrpo.commands.common import Parser, terminal
from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.errors import ConfigError
from mixgrpo.flow.plan import TrajectoryPlan
from mixgrpo.rl.window import trained_steps
from mixgrpo.train.settings import Cost, dancegrpo_cost, make_plan, make_window, mean_cost

_USAGE = "mixgrpo plan PRESET_OR_FILE [--json] [--section.name VALUE ...]"
_ABOUT = "Show what a run would do and what it costs in model calls, beside DanceGRPO. Nothing is loaded."


@dataclass(frozen=True, slots=True)
class Stretch:
    """Iterations in a row with the same stochastic steps."""

    iterations: range
    window: range
    plan: TrajectoryPlan


def run(args: Sequence[str]) -> int:
    """Print the plan of a preset or file."""
    if not args or args[0].startswith("-"):
        make_parser().read(args)
        raise ConfigError("name a preset or a settings file first: mixgrpo plan flux-nano (see mixgrpo presets)")
    source = args[0]
    found, rest = make_parser(add_help=False).parse_known_args(args[1:])
    own = {"--json": "print the figures as JSON"}
    config = load_config(source, rest, prog=f"mixgrpo plan {source}", about=_ABOUT, own=own)
    if found.json:
        print(json.dumps(as_dict(config), indent=2))
    else:
        from mixgrpo.commands.plan_view import show_plan

        show_plan(config, stretches(config), compare(config), terminal())
    return 0


def make_parser(*, add_help: bool = True) -> Parser:
    """Return the parser of the command's own arguments, those that are no settings."""
    parser = Parser(
        "plan",
        _ABOUT,
        usage=_USAGE,
        add_help=add_help,
        epilog="All settings, with their values in a preset: mixgrpo plan PRESET_OR_FILE --help",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def stretches(config: Config) -> list[Stretch]:
    """Return the positions of the window in the order of the run."""
    window = make_window(config)
    found: list[Stretch] = []
    for steps, group in groupby(range(config.iterations), key=window.at):
        iterations = list(group)
        found.append(Stretch(range(iterations[0], iterations[-1] + 1), steps, make_plan(config, steps)))
    return found


def compare(config: Config) -> dict[str, Cost]:
    """Return the mean model calls per sample: DanceGRPO as published, this run without and with sharing."""
    costs = {
        "DanceGRPO": dancegrpo_cost(config.rollout.num_steps),
        "unshared": mean_cost(config, shared=False),
    }
    if config.rollout.noise_spread == 0.0:
        costs["shared"] = mean_cost(config, shared=True)
    return costs


def as_dict(config: Config) -> dict[str, object]:
    """Return the plan as plain values."""
    window, costs = make_window(config), compare(config)
    base = costs["DanceGRPO"].forwards
    return {
        "name": config.name,
        "iterations": config.iterations,
        "samples_per_iteration": config.prompts_per_iteration * config.rollout.group_size,
        "positions": [
            {
                "iterations": [stretch.iterations.start, stretch.iterations.stop],
                "window": [stretch.window.start, stretch.window.stop],
                "num_steps": stretch.plan.num_steps,
                "num_trained": len(trained_steps(window, stretch.iterations.start)),
                "sigmas": stretch.plan.sigmas,
            }
            for stretch in stretches(config)
        ],
        "calls_per_sample": {name: {**asdict(cost), "forwards": cost.forwards} for name, cost in costs.items()},
        "share_of_dancegrpo": {name: cost.forwards / base for name, cost in costs.items()},
    }
