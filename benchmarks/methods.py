"""Time an iteration of each method on flux-nano, in one process, interleaved, by median.

    make bench                      (or: python benchmarks/methods.py --repeats 2 --positions 3 --prompts 4)

Every method runs the project's own training iteration with T = 25, 12 samples per prompt and a window of 4 steps, as
the paper does on FLUX.1-dev. A round takes one iteration of every method; a sliding window stands at another position
in every round, evenly spread from the first position to the last. Per position the median over the repeats counts, and
the mean over the positions is the method's time.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mixgrpo.commands.common import quiet_libraries
from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.train.loop import Trainer

STEPS, WINDOW = 25, 4
COMMON = ["--rollout.num-steps", str(STEPS), "--rollout.eta", "0.7", "--optim.lr", "1e-9", "--eval.num-prompts", "1"]
FLASH = ["--rollout.tail-order", "2"]


def method_args(positions: int) -> dict[str, tuple[str, list[str]]]:
    """Return each method's preset and flags; `positions` is how many places a sliding window is measured at."""
    stride = (STEPS - 1 - WINDOW) // (positions - 1)
    sliding = ["--window.size", str(WINDOW), "--window.interval", "1", "--window.stride", str(stride)]
    frozen = ["--window.size", str(WINDOW)]
    return {
        "DanceGRPO": ("flux-nano-dancegrpo", ["--rollout.share-trunk", "False"]),
        "MixGRPO, nothing shared": ("flux-nano", [*sliding, "--rollout.share-trunk", "False"]),
        "MixGRPO": ("flux-nano", sliding),
        "MixGRPO-Flash": ("flux-nano-mixgrpo-flash", [*sliding, *FLASH, "--rollout.tail-ratio", "0.4"]),
        "MixGRPO-Flash*": ("flux-nano-mixgrpo-flash-star", [*frozen, *FLASH, "--rollout.tail-ratio", "0.2"]),
    }


class Rows:
    """A sink that keeps the rows of training iterations."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def record(self, row: Any) -> None:
        if row["kind"] == "train":
            self.rows.append(dict(row))

    def progress(self, phase: str, done: int, total: int) -> None: ...

    def close(self) -> None: ...


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every method, one per round, in the order they were measured."""
    with tempfile.TemporaryDirectory() as folder:
        trainers: dict[str, tuple[Trainer, Rows]] = {}
        for name, (preset, flags) in method_args(arguments.positions).items():
            config: Config = load_config(
                preset, [*COMMON, *flags, "--prompts-per-iteration", str(arguments.prompts), *arguments.settings]
            )
            sink = Rows()
            trainers[name] = (Trainer(config, Path(folder) / name.replace(" ", ""), resume=False, sinks=[sink]), sink)
        for name, (trainer, sink) in trainers.items():
            console.print(f"warming up {name}")
            trainer.iterate(0)
            sink.rows.clear()
        for round_index in range(arguments.repeats * arguments.positions):
            for trainer, _ in trainers.values():
                trainer.iterate(round_index % arguments.positions)
            took = ", ".join(f"{name} {sink.rows[-1]['seconds']:.2f} s" for name, (_, sink) in trainers.items())
            console.print(f"round {round_index + 1} of {arguments.repeats * arguments.positions}: {took}")
        for trainer, _ in trainers.values():
            trainer.close()
        return {name: sink.rows for name, (_, sink) in trainers.items()}


def summarise(rows: list[dict[str, Any]], positions: int) -> dict[str, float]:
    """Return the mean over the positions of the median over the repeats, and the share of time spent elsewhere."""

    def figure(read: Any) -> float:
        medians = [statistics.median(read(row) for row in rows[position::positions]) for position in range(positions)]
        return statistics.fmean(medians)

    return {
        "seconds": figure(lambda row: row["seconds"]),
        "sampling_calls": figure(lambda row: row["calls"]["sampling"]),
        "update_calls": figure(lambda row: row["calls"]["update"]),
        "outside_share": figure(lambda row: row["timing"]["other"] / row["seconds"]),
        "model_share": figure(lambda row: row["timing"]["model"] / row["seconds"]),
        "decode_share": figure(lambda row: row["timing"]["decode"] / row["seconds"]),
        "score_wait_share": figure(lambda row: row["timing"]["score_wait"] / row["seconds"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="times that every position is measured")
    parser.add_argument("--positions", type=int, default=3, help="places of the sliding window, evenly spread")
    parser.add_argument("--prompts", type=int, default=4, help="prompts per iteration")
    parser.add_argument("--json", type=Path, help="write the figures and all rows to this file")
    parser.add_argument("settings", nargs="*", help="further settings, after --, such as -- --model.threads 1")
    arguments = parser.parse_args()
    console = Console()
    quiet_libraries()
    rows = measure(arguments, console)
    figures = {name: summarise(method, arguments.positions) for name, method in rows.items()}
    dance = figures["DanceGRPO"]["seconds"]
    table = Table(
        "method".ljust(23), "s / iteration", "of DanceGRPO", "sampling calls", "update calls", "model", "outside *"
    )
    for name, figure in figures.items():
        table.add_row(
            name,
            f"{figure['seconds']:.2f}",
            f"{figure['seconds'] / dance:.3f}",
            f"{figure['sampling_calls']:.2f}",
            f"{figure['update_calls']:.2f}",
            f"{figure['model_share']:.1%}",
            f"{figure['outside_share']:.1%}",
        )
    console.print(table)
    console.print(
        "Calls are per sample, as counted. * share of the time outside model, VAE, text encoders and rewards."
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
