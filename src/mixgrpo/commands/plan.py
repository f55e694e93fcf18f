"""`mixgrpo plan`: what a run would do and cost, before anything is loaded. Only --calibrate needs torch."""

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import groupby

from mixgrpo.commands.common import Parser, above_zero, quiet_libraries, terminal
from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.cost.bill import Bill, bill_figures, make_bill
from mixgrpo.cost.gpus import Gpu
from mixgrpo.cost.seconds import Speeds, predict_dancegrpo, predict_mean
from mixgrpo.data.sets import is_on_hub, load_prompt_sets
from mixgrpo.errors import ConfigError
from mixgrpo.flow.plan import TrajectoryPlan
from mixgrpo.rl.window import trained_steps
from mixgrpo.shapes import BUNDLED
from mixgrpo.train.settings import make_plan, make_window

_USAGE = "mixgrpo plan PRESET_OR_FILE [--json] [--calibrate [SECONDS]] [--section.name VALUE ...]"
_ABOUT = (
    "Show what a run would do and what it costs, beside DanceGRPO of as many steps. Loads nothing without --calibrate."
)
_OWN = {
    "--json": "print the figures as JSON",
    "--calibrate": "load model and rewards, time single calls for 60 seconds, and predict the time here",
    "--gpu-tflops": "peak of an assumed GPU in TFLOP/s, dense bfloat16 (default: 989)",
    "--utilisation": "share of that peak that is reached (default: 0.4)",
    "--gpu-memory": "memory of an assumed GPU in GiB (default: 80)",
}


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
    config = load_config(source, rest, prog=f"mixgrpo plan {source}", about=_ABOUT, own=_OWN)
    gpu = Gpu(tflops=found.gpu_tflops, utilisation=found.utilisation, memory=found.gpu_memory)
    bill = make_bill(config, gpu, with_gpus=gpu != Gpu() or config.model.path not in BUNDLED)
    # A plan never downloads anything.
    prompts = None if is_on_hub(config.prompts) else load_prompt_sets(config).figures()
    speeds = _calibrate(config, found.calibrate) if found.calibrate else None
    if found.json:
        print(json.dumps({**as_dict(config, bill, speeds), "prompts": prompts}, indent=2))
        return 0
    from mixgrpo.commands.cost_view import show_bill, show_seconds
    from mixgrpo.commands.plan_view import show_plan

    console = terminal()
    show_plan(config, stretches(config), console, prompts=prompts)
    show_bill(config, bill, console)
    if speeds is not None:
        show_seconds(config, speeds, console)
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
    parser.add_argument("--json", action="store_true", help=_OWN["--json"])
    calibration = {"nargs": "?", "type": above_zero, "const": 60.0, "metavar": "SECONDS"}
    parser.add_argument("--calibrate", help=_OWN["--calibrate"], **calibration)
    defaults = Gpu()
    parser.add_argument("--gpu-tflops", type=above_zero, default=defaults.tflops, help=_OWN["--gpu-tflops"])
    parser.add_argument("--utilisation", type=_share, default=defaults.utilisation, help=_OWN["--utilisation"])
    parser.add_argument("--gpu-memory", type=above_zero, default=defaults.memory, help=_OWN["--gpu-memory"])
    return parser


def stretches(config: Config) -> list[Stretch]:
    """Return the positions of the window in the order of the run."""
    window = make_window(config)
    found: list[Stretch] = []
    for steps, group in groupby(range(config.iterations), key=window.at):
        iterations = list(group)
        found.append(Stretch(range(iterations[0], iterations[-1] + 1), steps, make_plan(config, steps)))
    return found


def as_dict(config: Config, bill: Bill, speeds: Speeds | None) -> dict[str, object]:
    """Return the plan as plain values."""
    window = make_window(config)
    figures: dict[str, object] = {
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
        **bill_figures(bill),
    }
    if speeds is not None:
        seconds, dance = predict_mean(config, speeds), predict_dancegrpo(config, speeds)
        figures["speeds"] = asdict(speeds)
        figures["seconds_per_iteration"] = {
            **asdict(seconds),
            "total": seconds.total,
            "of_dancegrpo": seconds.total / dance.total,
        }
    return figures


def _calibrate(config: Config, seconds: float) -> Speeds:
    quiet_libraries()
    from mixgrpo.cost.calibrate import calibrate

    console = terminal()
    with console.status(f"timing single calls for {seconds:g} seconds") if console.is_terminal else nullcontext():
        return calibrate(config, seconds=seconds)


def _share(text: str) -> float:
    """Read a number above 0 and at most 1."""
    value = above_zero(text)
    if value > 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return value
