"""How the cost of a plan looks in a terminal: model calls, operations, memory, seconds, and GPUs that are assumed."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixgrpo.config.schema import Config
from mixgrpo.cost.bill import Bill, ModelBill
from mixgrpo.cost.gpus import GIB, Gpu, fits
from mixgrpo.cost.memory import Memory
from mixgrpo.cost.operations import Operations
from mixgrpo.cost.seconds import Speeds, predict_dancegrpo, predict_mean
from mixgrpo.shapes import why_no_shape
from mixgrpo.train.settings import FORWARDS_PER_UPDATE_CALL, Cost

NAMES = {
    "DanceGRPO": "DanceGRPO, same T",
    "unshared": "this run, unshared",
    "shared": "this run, shared",
}
SMALL_GPU = 24.0
"""GiB of the smaller GPU that memory is compared with."""
_MANY = 7
"""Columns from which on a table needs its room for them, on a terminal of 60 characters."""
_PREFIXES = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6}

T = TypeVar("T")


def show_bill(config: Config, bill: Bill, console: Console) -> None:
    """Print what a run costs."""
    _print_calls(config, bill, console)
    if bill.model is None:
        return
    _print_operations(bill, bill.model, console)
    _print_memory(bill.model.memory, console)
    if bill.model.shares:
        _print_gpus(config, bill.model, console)


def show_seconds(config: Config, speeds: Speeds, console: Console) -> None:
    """Print what a calibration predicts for this machine."""
    run, base = predict_mean(config, speeds), predict_dancegrpo(config, speeds)
    parts = {
        "sampling": run.sampling,
        "decoding": run.decoding,
        "waiting for scores": run.waiting,
        "encoding prompts": run.encoding,
        "sampling policy": run.old,
        "starting model": run.reference,
        "updating": run.updating,
        "optimiser": run.stepping,
    }
    told = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items() if seconds >= 0.005)
    minutes = config.iterations * run.total / 60.0
    heading = (
        f"on this machine: {run.total:.2f} s per iteration, {run.total / base.total:.2f} of the {base.total:.2f} s of "
        f"DanceGRPO with the same {config.rollout.num_steps} steps; {minutes:.1f} minutes for the run"
    )
    console.print(textwrap.fill(heading, console.width))
    lines = [
        f"In seconds: {told}. Predicted from single calls that were timed here, in milliseconds for n samples at once: "
        f"forward {_line(speeds, 'forward')}, forward and backward {_line(speeds, 'update')}, decoding "
        f"{_line(speeds, 'decode')}, scoring {_line(speeds, 'score')}. Evaluation is not counted.",
    ]
    _print_small(lines, console)


def _print_calls(config: Config, bill: Bill, console: Console) -> None:
    """Print the model calls; also as forward passes if the model's size is not known, as nothing better follows."""
    columns: dict[str, Callable[[Cost], float]] = {
        "sampling": lambda cost: cost.sampling,
        "old": lambda cost: cost.old,
        "ref.": lambda cost: cost.reference,
        "updating": lambda cost: cost.update,
    }
    columns = _not_all_zero(columns, bill.costs)
    if bill.model is None:
        base = bill.costs["DanceGRPO"].forwards
        columns |= {"forwards": lambda cost: cost.forwards, "ratio": lambda cost: cost.forwards / base}
    table = _table("model calls per sample", *columns, longest="DanceGRPO,")
    for name, cost in bill.costs.items():
        style = "bold" if name == bill.used else None
        table.add_row(NAMES[name], *(f"{read(cost):.2f}" for read in columns.values()), style=style)
    console.print(table)
    console.print()
    lines = [
        _baseline(config, bill.costs["DanceGRPO"]),
        *(["old: forward passes for what the sampling policy predicted."] if "old" in columns else []),
        *(["ref.: forward passes of the starting model."] if "ref." in columns else []),
    ]
    if bill.model is None:
        lines += [
            f"A forward-and-backward pass of an update counts as {FORWARDS_PER_UPDATE_CALL:g} forwards. Not counted: "
            "evaluation, VAE, text encoders, rewards.",
            why_no_shape(config.model.path),
        ]
    _print_small(lines, console)
    console.print()


def _baseline(config: Config, dance: Cost) -> str:
    """Say what ratios are of: no run of DanceGRPO's authors, but their rule at this run's number of steps."""
    steps = config.rollout.num_steps
    return f"DanceGRPO, same T: {steps} steps as here, of which it trains {dance.update:.0f}, and nothing shared."


def _print_operations(bill: Bill, model: ModelBill, console: Console) -> None:
    """Print the operations of an iteration, and what they are made of."""
    columns: dict[str, Callable[[Operations], float]] = {
        "sample": lambda each: each.sampling,
        "old": lambda each: each.old,
        "ref.": lambda each: each.reference,
        "update": lambda each: each.update,
        "decode": lambda each: each.decode + each.encode,
        "total": lambda each: each.total,
    }
    columns = _not_all_zero(columns, model.operations)
    base = model.operations["DanceGRPO"].total
    prefix, unit = _unit(base)
    digits = 1 if base >= 100 * unit else 2
    table = _table(f"{prefix}FLOP per iteration", *columns, "ratio")
    for name, each in model.operations.items():
        figures = [f"{read(each) / unit:,.{digits}f}" for read in columns.values()]
        table.add_row(NAMES[name], *figures, f"{each.total / base:.2f}", style="bold" if name == bill.used else None)
    console.print(table)
    console.print()
    _print_small(["decode: the VAE's decoder and the text encoders.", _model_line(model)], console)
    console.print()


def _model_line(model: ModelBill) -> str:
    network, training = model.shape.transformer, model.training
    forward = network.forward(training)
    prefix, unit = _unit(forward)
    trained = _count(model.shape.trained_parameters(training)) if training.rank else "all"
    twice = ", of which a call takes two because of guidance" if model.shape.passes > 1 else ""
    in_two = " in two transformers, of which one runs at a time" if model.shape.transformer_2 else ""
    again = ", the forward pass twice because of gradient checkpointing" if training.checkpointing else ""
    return (
        f"{model.shape.source}: {_count(model.shape.parameters)} parameters{in_two}, {trained} trained, on "
        f"{model.shape.tokens:,} tokens. A forward pass of one sample is {forward / unit:.1f} {prefix}FLOP{twice}; "
        f"forward and backward are {(forward + network.backward(training)) / forward:.2f} times that{again}. Counted "
        "are matrix products, convolutions and attention, means over the run, without evaluation and rewards."
    )


def _print_memory(memory: Memory, console: Console) -> None:
    """Print what one process holds."""
    name, unit = ("GiB", GIB) if memory.peak >= GIB else ("MiB", GIB // 1024)
    held = ", ".join(f"{part} {size / unit:,.1f}" for part, size in memory.resident.items())
    phase, size = max(memory.phases.items(), key=lambda each: each[1])
    console.print(f"memory of one process on one device: {memory.peak / unit:,.0f} {name}")
    left_out = "Rewards, Python, libraries and driver are not counted."
    lines = [f"{held}; on top, {size / unit:,.1f} at most ({phase}). {left_out}"]
    _print_small(lines, console)
    console.print()


def _print_gpus(config: Config, model: ModelBill, console: Console) -> None:
    """Print each GPU's part for several numbers of GPUs."""
    shares, gpu = model.shares, model.gpu
    prefix, unit = _unit(shares[0].operations)
    headings = ("prompts each", "trained", f"{prefix}FLOP each", "s / it.", "hours", "GiB each")
    sizes = (gpu.memory, SMALL_GPU)
    table = _table("GPUs", *headings, *(f"{size:g} GiB" for size in sizes))
    for share in shares:
        first = not share.rank
        table.add_row(
            str(share.gpus) if first else "",
            str(share.prompts) if first else "",
            f"LoRA {share.rank}" if share.rank else "all",
            f"{share.operations / unit:,.1f}",
            f"{share.seconds:,.0f}",
            f"{share.hours:,.1f}",
            f"{share.gib:,.0f}",
            *(fits(share, size) for size in sizes),
        )
    console.print(table)
    console.print()
    _print_small(_assumptions(gpu, config.prompts_per_iteration, max(share.gpus for share in shares)), console)


def _assumptions(gpu: Gpu, prompts: int, most: int) -> list[str]:
    return [
        f"Assumed, not measured: GPUs of {gpu.tflops:g} TFLOP/s in dense bfloat16 (--gpu-tflops), used to "
        f"{gpu.utilisation:.0%} (--utilisation), with {gpu.memory:g} GiB (--gpu-memory). Prompts are spread evenly; "
        "FSDP shares out weights, gradients and optimiser state; text encoders and VAE stand on every GPU. "
        "Communication, rewards, evaluation and saving are not counted. barely: over 90 % full.",
        *([f"{prompts} prompts leave {most - prompts} of {most} GPUs without work."] if prompts < most else []),
        "What the paper publishes for its 32 GPUs means a utilisation of 12 to 13 % of 989 TFLOP/s: see docs/cost.md.",
    ]


def _not_all_zero(columns: dict[str, Callable[[T], float]], rows: Mapping[str, T]) -> dict[str, Callable[[T], float]]:
    return {name: read for name, read in columns.items() if any(read(row) for row in rows.values())}


def _line(speeds: Speeds, name: str) -> str:
    line = getattr(speeds, name)
    return f"{1000 * line.fixed:.1f} + {1000 * line.each:.2f} n"


def _unit(largest: float) -> tuple[str, float]:
    """Return the prefix that suits a number, and what it stands for."""
    return next(((name, unit) for name, unit in _PREFIXES.items() if largest >= unit), ("", 1.0))


def _count(number: int) -> str:
    """Return a number of parameters with three digits and a word."""
    for name, unit in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)


def _table(*headings: str, longest: str = "") -> Table:
    padding = (0, 1) if len(headings) < _MANY else (0, 1, 0, 0)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding, show_edge=False)
    for number, heading in enumerate(headings):
        word = max(len(word) for word in [*heading.split(), "" if number else longest])
        table.add_column(heading, justify="right" if number else "left", overflow="fold", min_width=word)
    return table


def _print_small(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(Text(textwrap.fill(line, console.width), style="dim"))
