"""Time an iteration of each method on flux-nano, in one process, interleaved, by median; predict it; and its memory.

    make bench                      (or: python benchmarks/methods.py --methods quick --repeats 1)

Every method runs the project's own training iteration with 12 samples per prompt, T = 25 and a window of 4 steps, as
the paper does on FLUX.1-dev (a method with a number of steps of its own keeps it). A round takes one iteration of every
method; a sliding window stands at another position in every round, evenly spread from the first position to the last.
Per position the median over the repeats counts, and the mean over the positions is the method's time.

Predictions come from the cost model and a calibration that times single calls of MixGRPO before the rounds begin.
On a machine with other work, --cpu-time counts the seconds of the process's threads instead of those on the wall.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mixgrpo.commands.common import quiet_libraries
from mixgrpo.config.load import dump_resolved, load_config
from mixgrpo.config.presets import methods
from mixgrpo.config.schema import Config
from mixgrpo.cost.calibrate import calibrate
from mixgrpo.cost.seconds import Speeds, predict
from mixgrpo.train.loop import Trainer

MODEL, STEPS, WINDOW = "flux-nano", 25, 4
OWN_STEPS = {"neighbor-grpo": 8}
"""Steps of a method that are part of it: here a second-order solver in place of more steps."""
AS_FEW_STEPS = ("dancegrpo-random", "dancegrpo-frozen")
"""Methods that train on as many steps as a window has."""
PAPER_TAIL = {"mixgrpo-flash-star": 0.2}
"""Tails that the preset for flux-nano has longer, for its few steps."""
BASE, SECOND, UNSHARED = "dancegrpo", "mixgrpo", "unshared"
QUICK = (BASE, UNSHARED, SECOND, "mixgrpo-flash", "mixgrpo-flash-star")
"""DanceGRPO as published, and MixGRPO and Flash with what a group shares, and once without."""


def method_config(method: str, arguments: argparse.Namespace) -> Config:
    """Return a method's preset with the settings of the benchmark."""
    preset = f"{MODEL}-{SECOND if method == UNSHARED else method}"
    given, flags = load_config(preset), ["--optim.lr", "1e-9", "--optim.warmup", "0", "--eval.num-prompts", "1"]
    flags += ["--rollout.num-steps", str(OWN_STEPS.get(method, STEPS))]
    if method in AS_FEW_STEPS:
        flags += ["--window.num-trained", str(WINDOW)]
    if method in PAPER_TAIL:
        flags += ["--rollout.tail-ratio", str(PAPER_TAIL[method])]
    if given.window.type != "all":
        flags += ["--window.size", str(WINDOW)]
    if given.window.type in ("sliding", "decaying"):
        stride = (STEPS - 1 - WINDOW) // max(1, arguments.positions - 1)
        flags += ["--window.interval", "1", "--window.stride", str(max(1, stride))]
    if method in (BASE, UNSHARED):
        flags += ["--rollout.share-trunk", "False"]
    return load_config(preset, [*flags, "--prompts-per-iteration", str(arguments.prompts), *arguments.settings])


class Rows:
    """A sink that keeps the rows of training iterations."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def record(self, row: Any) -> None:
        if row["kind"] == "train":
            self.rows.append(dict(row))

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def close(self) -> None: ...


def measure(
    configs: dict[str, Config], arguments: argparse.Namespace, *, clock: Callable[[], float], console: Console
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every method, one per round, in the order they were measured."""
    with tempfile.TemporaryDirectory() as folder:
        sinks = {name: Rows() for name in configs}
        trainers = {
            name: Trainer(config, Path(folder) / name, resume=False, sinks=[sinks[name]])
            for name, config in configs.items()
        }
        for name, trainer in trainers.items():
            console.print(f"warming up {name}")
            trainer.iterate(0)
            sinks[name].rows.clear()
        rounds = arguments.repeats * arguments.positions
        for index in range(rounds):
            for name, trainer in trainers.items():
                begin = clock()
                trainer.iterate(index % arguments.positions)
                sinks[name].rows[-1]["clock"] = clock() - begin
            took = ", ".join(f"{name} {sink.rows[-1]['clock']:.2f} s" for name, sink in sinks.items())
            console.print(f"round {index + 1} of {rounds} (load {os.getloadavg()[0]:.1f}): {took}")
        for trainer in trainers.values():
            trainer.close()
        return {name: sink.rows for name, sink in sinks.items()}


def summarise(rows: list[dict[str, Any]], config: Config, speeds: Speeds, *, positions: int) -> dict[str, float]:
    """Return means over the positions: of the medians over the repeats, and of what is predicted."""

    def figure(read: Callable[[dict[str, Any]], float]) -> float:
        return statistics.fmean(
            statistics.median(read(row) for row in rows[position::positions]) for position in range(positions)
        )

    return {
        "seconds": figure(lambda row: row["clock"]),
        "predicted": statistics.fmean(predict(config, speeds, position).total for position in range(positions)),
        "sampling_calls": figure(lambda row: row["calls"]["sampling"]),
        "update_calls": figure(lambda row: row["calls"]["update"]),
        **{
            f"{name}_share": figure(lambda row, name=name: row["timing"].get(name, 0.0) / row["seconds"])
            for name in ("model", "decode", "score_wait", "other")
        },
    }


def memory(config: Config) -> dict[str, int]:
    """Return how much memory an iteration takes, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.json"
        dump_resolved(config, file)
        script = Path(__file__).with_name("memory.py")
        done = subprocess.run([sys.executable, script, "--json", file], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def show(figures: dict[str, dict[str, float]], console: Console) -> None:
    """Print the tables."""
    base = figures.get(BASE) or next(iter(figures.values()))
    table = make_table("method", "s / it.", "ratio", "predicted", "error", "calls", "other")
    for name, figure in figures.items():
        ratio, predicted = (figure[key] / base[key] for key in ("seconds", "predicted"))
        table.add_row(
            name,
            f"{figure['seconds']:.2f}",
            f"{ratio:.3f}",
            f"{predicted:.3f}",
            f"{predicted / ratio - 1:+.1%}",
            f"{figure['sampling_calls']:.1f} + {figure['update_calls']:.1f}",
            f"{figure['other_share']:.1%}",
        )
    console.print(table)
    console.print("ratio: of the first method's time. calls: per sample, sampling + updating.")
    console.print("other: share of the time outside model, VAE, text encoders and rewards.\n")
    table = make_table("method", "MB", "predicted", "error")
    for name, figure in figures.items():
        if "measured" in figure:
            measured, expected = figure["measured"], figure["expected"]
            table.add_row(name, f"{measured / 1e6:.0f}", f"{expected / 1e6:.0f}", f"{expected / measured - 1:+.1%}")
    if table.row_count:
        console.print(table)
        console.print("MB: what an iteration needs at most besides weights, gradients and optimiser.")


def make_table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, collapse_padding=True, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = (*methods(), UNSHARED)
    parser.add_argument(
        "--methods", nargs="+", default=["quick"], metavar="METHOD", help=f"quick, all, or some of {', '.join(names)}"
    )
    parser.add_argument("--repeats", type=int, default=2, help="times that every position is measured")
    parser.add_argument("--positions", type=int, default=3, help="places of the sliding window, evenly spread")
    parser.add_argument("--prompts", type=int, default=4, help="prompts per iteration")
    parser.add_argument("--cpu-time", action="store_true", help="count the seconds of this process's threads")
    parser.add_argument("--calibration", type=float, default=40.0, help="seconds that single calls are timed")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory in processes of their own")
    parser.add_argument("--json", type=Path, help="write the figures and all rows to this file")
    parser.add_argument("settings", nargs="*", help="further settings, after --, such as -- --model.threads 1")
    arguments = parser.parse_args()
    chosen = {"quick": list(QUICK), "all": [BASE, *(name for name in names if name != BASE)]}.get(
        arguments.methods[0], arguments.methods
    )
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"unknown methods {', '.join(unknown)}; there are: quick, all, {', '.join(names)}")
    console, clock = Console(), time.process_time if arguments.cpu_time else time.perf_counter
    quiet_libraries()
    configs = {name: method_config(name, arguments) for name in chosen}
    console.print(f"calibrating (load {os.getloadavg()[0]:.1f})")
    speeds = calibrate(method_config(SECOND, arguments), seconds=arguments.calibration, clock=clock)
    rows = measure(configs, arguments, clock=clock, console=console)
    figures = {name: summarise(rows[name], configs[name], speeds, positions=arguments.positions) for name in chosen}
    for name, config in {} if arguments.no_memory else configs.items():
        console.print(f"measuring the memory of {name}")
        found = memory(config)
        figures[name] |= {"measured": found["measured"], "expected": found["predicted"]}
    show(figures, console)
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
