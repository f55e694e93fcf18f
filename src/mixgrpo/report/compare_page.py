"""The results of a comparison: `index.html`, `table.md` and `results.json` in its folder."""

import json
import math
from html import escape
from pathlib import Path

from mixgrpo.report.compare_curves import axis_toggle, chips, colors_of, curve_panels
from mixgrpo.report.compare_lanes import gap_lanes, race
from mixgrpo.report.compare_pictures import picture_section
from mixgrpo.report.compare_results import Results, as_json, make_results
from mixgrpo.report.compare_setup import setup_section
from mixgrpo.report.compare_table import Cell, Table, cost_table, gap_table, markdown, reward_table
from mixgrpo.report.compare_words import verdicts
from mixgrpo.report.comparison import read_comparison, samples_per_iteration
from mixgrpo.report.health import Level
from mixgrpo.report.page import html_page, note_list, section, write_page
from mixgrpo.report.text import TIMES, count, duration, listing, moment, value

LINKS = ("verdicts", "tables", "curves", "pictures", "samplers", "setup")


def write_comparison(folder: Path) -> Path:
    """Write the results of the comparison in `folder` into it, and return the path of the page.

    Raises:
        CheckpointError: if the folder or a run in it is missing or damaged.
        ConfigError: if a run's `resolved.json` is damaged, or the results cannot be written.
    """
    results = make_results(read_comparison(folder))
    write_page(folder / "results.json", json.dumps(as_json(results), indent=1, allow_nan=False) + "\n")
    write_page(folder / "table.md", markdown(results))
    page = folder / "index.html"
    write_page(page, render_comparison(results))
    return page


def render_comparison(results: Results) -> str:
    """Return the page of a comparison."""
    title = _title(results)
    if not any(method.curve for method in results.methods):
        waiting = '<p class="empty-note">No method has been evaluated yet.</p>'
        content = _header(results, title) + section("setup", "How it was made", waiting + setup_section(results))
        return html_page(f"{title} · MixGRPO", content, ("compare.css", "compare.js"))
    colors = colors_of(results)
    notes = sorted(verdicts(results), key=lambda note: note.level is not Level.ALARM)
    steered = section("curves", "Curves", _curve_words(results) + curve_panels(results))
    steered += section("pictures", "The same noise, method by method", picture_section(results, colors))
    content = (
        _header(results, title)
        + section("verdicts", "Verdicts", note_list(notes) + _race(results, colors))
        + section("tables", "In figures", _table(cost_table(results)) + _table(reward_table(results)))
        + f'<div class="steered"><div class="steer">{axis_toggle()}{chips(results)}</div>{steered}</div>'
        + _samplers(results, colors)
        + section("setup", "How it was made", setup_section(results))
    )
    return html_page(f"{title} · MixGRPO", content, ("compare.css", "compare.js"))


def _title(results: Results) -> str:
    titles = [method.title for method in results.methods]
    model = results.comparison.terms.model
    return f"{listing(titles)} on {model}" if len(titles) <= 2 else f"{len(titles)} methods on {model}"


def _header(results: Results, title: str) -> str:
    links = " ".join(f'<a href="#{name}">{name}</a>' for name in LINKS)
    level, words = _status(results)
    return (
        f'<header><p class="over">MixGRPO comparison</p><h1>{escape(title)}</h1><p class="lede">{_lede(results)}</p>'
        f'<p class="status {level}">{escape(words)}</p><nav>{links}</nav></header>'
    )


def _lede(results: Results) -> str:
    comparison = results.comparison
    run = next((course.run for course in comparison.courses), None)
    trained = [
        f.name for f in comparison.figures if f.role == "trained" or (f.role == "decisive" and " " not in f.name)
    ]
    parts = [f"trained on {escape(listing(trained))}"] if trained else []
    if run is not None:
        iterations, samples = run.setting("iterations"), samples_per_iteration(run)
        prompts, group = run.setting("prompts_per_iteration"), run.setting("rollout.group_size")
        if isinstance(iterations, int) and math.isfinite(samples):
            parts.append(f"{count(iterations, 'iteration')} of {prompts} {TIMES} {group} samples")
    parts.append(f"{count(comparison.terms.seeds, 'seed')} each")
    return f"The same prompts, noise and evaluation for every method: {', '.join(parts)}."


def _status(results: Results) -> tuple[str, str]:
    planned = len(results.methods) * results.comparison.terms.seeds
    ended = sum(method.finished + method.stopped for method in results.methods)
    spent = sum(course.marks[-1].seconds for course in results.comparison.courses if course.marks)
    sessions = results.comparison.terms.sessions
    last = next((session.ended for session in reversed(sessions) if session.ended is not None), None)
    when = f", last on {moment(last)}" if last is not None else ""
    words = f"{ended} of {count(planned, 'run')} at their end; {duration(spent)} of training{when}."
    return ("good" if results.is_complete else "open"), words


def _race(results: Results, colors: dict[str, int]) -> str:
    drawn = race(results, colors)
    if not drawn:
        return ""
    name = escape(results.reference.title)
    return (
        f'<h3 class="part">How soon each method reached {name}\'s final reward</h3><p class="quiet">The goal is the '
        f"mean over the seeds of {name}'s final {escape(results.comparison.decisive)}, {value(results.target)}; its "
        "whole run is 1. Bars are medians over the seeds, dots single seeds. Hatched: the whole run of a method that "
        f"did not get there in most seeds.</p>{drawn}"
    )


def _curve_words(results: Results) -> str:
    many = any(max(method.finished, method.running) > 1 for method in results.methods)
    band = " Bands reach from the lowest to the highest of the seeds." if many else ""
    return (
        f'<p class="quiet">Means over the held-out prompts by ODE sampling, a point an evaluation.{band} Training time '
        "is that of the iterations alone.</p>"
    )


def _samplers(results: Results, colors: dict[str, int]) -> str:
    drawn = gap_lanes(results, colors)
    if not drawn:
        return ""
    words = (
        '<p class="quiet">Training draws images with noise in some steps, users draw them without. Here both are after '
        "training, the former as the last iteration drew. Thin bars are one standard error of an evaluation.</p>"
    )
    return section(
        "samplers", "ODE against the training sampler", words + drawn + _table(gap_table(results), fold=True)
    )


def _table(table: Table, *, fold: bool = False) -> str:
    head = "".join(f"<th>{_cell(cell)}</th>" for cell in table.head)
    body = "".join(_row(name, cells) for name, cells in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    content = (
        f'<div class="scroll"><table class="numbers {table.name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        f'</table></div><ul class="table-notes">{notes}</ul>'
    )
    if fold:
        return f"<details><summary>In figures, for every reward</summary>{content}</details>"
    return f'<h3 class="part">{escape(table.title)}</h3>{content}'


def _row(name: str, cells: tuple[Cell, ...]) -> str:
    first, *rest = cells
    css = "" if name else ' class="start"'
    return f"<tr{css}><th>{_cell(first)}</th>{''.join(f'<td>{_cell(cell)}</td>' for cell in rest)}</tr>"


def _cell(cell: Cell) -> str:
    text = f"<b>{escape(cell.text)}</b>" if cell.strong else escape(cell.text)
    return f"{text}<small>{escape(cell.small)}</small>" if cell.small else text
