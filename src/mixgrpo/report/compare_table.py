"""The tables of a comparison, once for the page and for `table.md`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mixgrpo.report.compare_results import Gap, MethodResult, Results, Spread
from mixgrpo.report.compare_words import level_with_best, verdicts
from mixgrpo.report.comparison import WEIGHTED_SUM, Axis
from mixgrpo.report.samplers import steps_in_words
from mixgrpo.report.text import NONE, amount, change, count, decimal, duration, gib, listing, seconds, value

FIELDS = {"sampling": "sampling", "old": "old policy", "reference": "reference", "update": "updating"}
"""Kinds of model calls and their names, in the order of an iteration."""


class Cell(NamedTuple):
    """A cell: its text, and what stands small below it."""

    text: str
    small: str = ""
    strong: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table whose first column names a method."""

    name: str
    title: str
    head: tuple[Cell, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    """Method (empty: no method) and its cells."""
    notes: tuple[str, ...]
    """What the reader must know, a sentence or two each."""


def tables(results: Results) -> list[Table]:
    """Return all tables that there is something to say in."""
    return [cost_table(results), reward_table(results), *([gap_table(results)] if _has_gaps(results) else [])]


def cost_table(results: Results) -> Table:
    """Return what every method took, and how soon it reached the target."""
    kinds = [kind for kind in FIELDS if kind in ("sampling", "update") or _is_counted(results, kind)]
    with_memory = has_memory(results)
    goal = f"{results.reference.title}'s final reward"
    head = [Cell("method"), *(Cell(FIELDS[kind], "calls per sample") for kind in kinds), Cell("time", "per iteration")]
    head += [Cell("memory", "peak")] if with_memory else []
    axes: tuple[Axis, ...] = ("seconds", "passes") if results.is_goal else ()
    head += [Cell("time to" if axis == "seconds" else "forward passes to", goal) for axis in axes]
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for method in results.methods:
        cells = [Cell(method.title, _runs(method, results)), *_cost_cells(method, results, kinds)]
        cells += [Cell(_memory(method))] if with_memory else []
        cells += [_reach_cell(method, results, axis) for axis in axes]
        rows.append((method.name, tuple(cells)))
    return Table(
        name="cost", title="What each method took", head=tuple(head), rows=tuple(rows), notes=_cost_notes(results)
    )


def has_memory(results: Results) -> bool:
    """Say whether peak memory was measured."""
    return any(m.cost is not None and math.isfinite(m.cost.peak_memory) for m in results.methods)


def reward_table(results: Results) -> Table:
    """Return every held-out figure before training and at the end of every method."""
    figures = results.comparison.figures
    best = {figure.name: _best(results, figure.name) for figure in figures}
    head = [Cell("method"), *(Cell(figure.name, _ROLES[figure.role]) for figure in figures)]
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    if results.before:
        start = [Cell(value(results.before[f.name].mean, share=f.is_share)) for f in figures]
        rows.append(("", (Cell("before training"), *start)))
    for method in results.methods:
        cells = [
            spread_cell(method.finals[f.name], share=f.is_share, strong=method.name in best[f.name]) for f in figures
        ]
        rows.append((method.name, (Cell(method.title, _runs(method, results)), *cells)))
    return Table(
        name="rewards",
        title="What each method brought",
        head=tuple(head),
        rows=tuple(rows),
        notes=_reward_notes(results),
    )


_ROLES = {"decisive": "decides", "trained": "trained", "measured": "measured", "judge": "independent judge"}


def _is_counted(results: Results, kind: str) -> bool:
    return any(method.cost is not None and method.cost.calls[kind] > 0 for method in results.methods)


def _runs(method: MethodResult, results: Results) -> str:
    """Say how many runs a row is of, where that is not all of them."""
    if method.provisional:
        return f"under way, iteration {min(method.iterations)}"
    ended = method.finished + method.stopped
    if not method.iterations:
        return "not begun"
    words = "" if ended == results.comparison.terms.seeds else f"{ended} of {results.comparison.terms.seeds} runs"
    return f"{words}{', ' if words else ''}{method.stopped} stopped by itself" if method.stopped else words


def _cost_cells(method: MethodResult, results: Results, kinds: Sequence[str]) -> list[Cell]:
    cost = method.cost
    if cost is None:
        return [Cell(NONE)] * (len(kinds) + 1)
    cells = [Cell(decimal(cost.calls[kind])) for kind in kinds]
    ratio = "" if method is results.reference else f"{cost.seconds_ratio:.2f} of {results.reference.title}'s"
    return [*cells, Cell(seconds(cost.seconds), ratio if math.isfinite(cost.seconds_ratio) else "")]


def _memory(method: MethodResult) -> str:
    return gib(method.cost.peak_memory if method.cost is not None else math.nan)


def _best(results: Results, name: str) -> set[str]:
    ended = {m.name: m.finals[name] for m in results.methods if not m.provisional and not m.finals[name].is_empty}
    level = level_with_best(ended)
    return level if len(level) < len(ended) else set()


def spread_cell(one: Spread, *, share: bool, strong: bool = False) -> Cell:
    """Return the mean, and below it the lowest and the highest over the seeds."""
    if one.is_empty:
        return Cell(NONE)
    ends = f"{value(one.low, share=share)} to {value(one.high, share=share)}".replace(" % to", " to")
    return Cell(value(one.mean, share=share), ends if one.runs > 1 else "", strong)


def _reach_cell(method: MethodResult, results: Results, axis: Axis) -> Cell:
    reach = method.reach
    if not reach.seeds:
        return Cell(NONE)
    seeds = f"{reach.reached} of {len(reach.seeds)}"
    place, ratio = reach.place(axis), reach.ratio(axis)
    if math.isinf(place):
        return Cell("not reached", f"{seeds} seeds")
    if math.isnan(place):
        return Cell(NONE, "not counted")
    text = duration(place) if axis == "seconds" else amount(round(place))
    return Cell(text, f"{ratio:.2f} of {results.reference.title}'s, {seeds}")


def _cost_notes(results: Results) -> tuple[str, ...]:
    reference = results.reference.title
    notes = (
        "Calls were counted as they were made; one is a pass of one sample through the model. An update call is a "
        "forward and a backward pass and counts as three forward passes.",
        "Time per iteration is the median over iterations and seeds; evaluations are not in it.",
    )
    if has_memory(results) and results.comparison.terms.order == "interleaved":
        notes += ("Memory is the process's, which held the trainers of all methods of a seed.",)
    if not results.is_goal:
        return notes
    return (
        *notes,
        f"The last two columns say when the held-out curve first reached the mean of {reference}'s final values: the "
        "median over the seeds, a seed that never did counting as later than all others. Below it the share of "
        f"{reference}'s whole run with the same seed, and how many seeds got there.",
    )


def _reward_notes(results: Results) -> tuple[str, ...]:
    seeds, prompts = results.comparison.terms.seeds, results.comparison.num_prompts
    held = f"{prompts} held-out prompts" if prompts else "the held-out prompts"
    over = ", and below them the lowest and the highest of the seeds" if seeds > 1 else ""
    words = [f"Means over {held} at the last evaluation: ODE sampling, the same noise for every method{over}."]
    decisive = results.comparison.figures[0] if results.comparison.figures else None
    if decisive is not None and decisive.name == WEIGHTED_SUM:
        words.append(f"The {decisive.name} is {decisive.words}.")
    if error := _errors(results):
        words.append(f"One evaluation's standard error, which all methods share with the prompts: {error}.")
    if any(_best(results, figure.name) for figure in results.comparison.figures):
        words.append("Bold: the best mean, and those whose range over the seeds reaches into its range.")
    return tuple(words)


def _errors(results: Results) -> str:
    parts = [
        f"{figure.name} {change(error, share=figure.is_share).removeprefix('+')}"
        for figure in results.comparison.figures
        if figure.role != "decisive" and math.isfinite(error := results.errors.get(figure.name, math.nan))
    ]
    return listing(parts)


def _has_gaps(results: Results) -> bool:
    return any(method.gap_after for method in results.methods)


def gap_table(results: Results) -> Table:
    """Return how far images without noise score above those drawn as in training: after it, perhaps before."""
    figures = [f for f in results.comparison.figures if any(f.name in m.gap_after for m in results.methods)]
    head = [Cell("method"), Cell("noise in steps"), *(Cell(figure.name, "(before →) after") for figure in figures)]
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for method in results.methods:
        cells = [_gap_cell(method.gap_before.get(f.name), method.gap_after.get(f.name), f.is_share) for f in figures]
        if method.gap_after:
            steps = steps_in_words(range(*window) for window in method.sampler_windows)
            rows.append((method.name, (Cell(method.title), Cell(steps or NONE), *cells)))
    return Table(
        name="gap",
        title="ODE sampling against the training sampler",
        head=tuple(head),
        rows=tuple(rows),
        notes=(
            "The held-out mean by ODE sampling minus that by the method's own training sampler at the last evaluation, "
            "as the mean over the seeds; to the left of an arrow the same before training.",
            "An evaluation draws with the noise of the iteration that follows, the last one with that of the last "
            "iteration, in the steps that are named. Where the window moves, before and after are of different "
            "samplers and say nothing of training, so only after is shown.",
            "± is the standard error of one run's gap with the two evaluations taken for independent. They share their "
            "prompts, so the true error is smaller.",
        ),
    )


def _gap_cell(before: Gap | None, after: Gap | None, share: bool) -> Cell:
    if after is None or after.gap.is_empty:
        return Cell(NONE)
    # figures far below the error are dust, however many decimals it takes to show them
    means = [gap.gap.mean for gap in (before, after) if gap is not None]
    means = [0.0 if abs(mean) < 0.01 * after.error else mean for mean in means]
    texts = [change(mean, share=share).removesuffix(" points") for mean in means]
    error = f"± {change(after.error, share=share).removeprefix('+')}" if math.isfinite(after.error) else ""
    return Cell(" → ".join(texts), error)


def markdown(results: Results) -> str:
    """Return `table.md`."""
    terms = results.comparison.terms
    methods = f"{count(len(results.methods), 'method')}, {count(terms.seeds, 'seed')}"
    parts = [f"# {terms.model}: {methods}", ""]
    parts += [f"- **{note.title}.** {note.text}" for note in verdicts(results)]
    for table in tables(results):
        parts += ["", f"## {table.title}", "", *_rows(table), "", *(f"- {note}" for note in table.notes)]
    commands = [session.command for session in terms.sessions]
    parts += ["", "## How it was made", "", "```sh", *commands, "```", ""]
    return "\n".join(parts)


def _rows(table: Table) -> list[str]:
    lines = [_line(table.head), "|" + "---|" * len(table.head)]
    return [*lines, *(_line(cells) for _, cells in table.rows)]


def _line(cells: Sequence[Cell]) -> str:
    return "| " + " | ".join(_text(cell) for cell in cells) + " |"


def _text(cell: Cell) -> str:
    # A star or a bar in a name must not become markup.
    text, small = (part.replace("|", "\\|").replace("*", "\\*") for part in (cell.text, cell.small))
    text = f"**{text}**" if cell.strong else text
    return f"{text}<br><sub>{small}</sub>" if small else text
