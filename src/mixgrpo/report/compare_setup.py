"""How a comparison was made: commands, machine, runs, and the settings in which the methods differ."""

from html import escape

from mixgrpo.report.appendix import flatten
from mixgrpo.report.compare_results import Results
from mixgrpo.report.comparison import Contender, Course, run_folder_of
from mixgrpo.report.text import NONE, duration, moment

_OWN = frozenset({"name", "description", "seed"})
"""Settings that differ because the runs are different runs."""

_REASONS = {
    "": "still under way, or killed",
    "finished": "everything ran",
    "budget": "the time it was given was over",
    "interrupted": "interrupted",
    "failed": "ended by an error",
}
_MARKS = {"finished": "✓", "stopped": "stopped by itself", "running": "not at its end"}


def setup_section(results: Results) -> str:
    """Return the commands, the methods, the runs with links to their reports, and all settings."""
    return (
        _order(results)
        + _commands(results)
        + _methods(results)
        + _differences(results)
        + _runs(results)
        + _common(results)
    )


def _order(results: Results) -> str:
    terms = results.comparison.terms
    if terms.order == "interleaved":
        words = (
            "The methods of a seed took turns, one iteration each, in one process, so that a busy machine slowed all "
            "of them alike."
        )
    else:
        words = "The runs followed one another, so a machine that was busy for a while slowed some of them only."
    versions = next(
        (course.run.sessions[0].versions for course in results.comparison.courses if course.run.sessions), {}
    )
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"<p>{words}</p>" + (f'<p class="quiet">With {escape(made)}.</p>' if made else "")


def _commands(results: Results) -> str:
    items: list[str] = []
    for session in results.comparison.terms.sessions:
        lasted = f", {duration(session.ended - session.begun)}" if session.ended is not None else ""
        budget = f" of {session.budget_minutes:g} minutes given" if session.budget_minutes is not None else ""
        title = f"{moment(session.begun)}{lasted}{budget}: {_REASONS[session.reason]}"
        items.append(f"<dt>{escape(title)}</dt><dd><code>{escape(session.command)}</code></dd>")
    return f'<dl class="commands">{"".join(items)}</dl>' if items else ""


def _methods(results: Results) -> str:
    rows = "".join(
        f"<tr><th>{escape(e.title)}</th><td>{escape(e.summary)}</td><td>{escape(e.source)}</td></tr>"
        for e in results.comparison.terms.methods
        if e.summary or e.source
    )
    head = "<thead><tr><th>method</th><th>what it does</th><th>described in</th></tr></thead>"
    return f'<div class="scroll"><table class="about">{head}<tbody>{rows}</tbody></table></div>' if rows else ""


def settings_of(contender: Contender) -> dict[str, str]:
    """Return the settings of a method's first run, by their dotted names; nothing if none has begun."""
    if not contender.courses:
        return {}
    flat = dict(flatten(contender.courses[0].run.config))
    return {name: text for name, text in flat.items() if name not in _OWN}


def differences(results: Results) -> dict[str, list[str | None]]:
    """Return the settings that differ between methods: name -> value by method, None where it has none of the name."""
    tables = [settings_of(contender) for contender in results.comparison.contenders if contender.courses]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {name: [table.get(name) for table in tables] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _differences(results: Results) -> str:
    rows = differences(results)
    begun = [contender for contender in results.comparison.contenders if contender.courses]
    if len(begun) < 2:
        return ""
    if not rows:
        return "<p>All methods had the same settings.</p>"
    head = "".join(f"<th>{escape(contender.entrant.title)}</th>" for contender in begun)
    body = ""
    for name, values in rows.items():
        cells = "".join(_cell(value, values[0], first=number == 0) for number, value in enumerate(values))
        body += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    return (
        f'<h3 class="part">Settings that differ</h3><p class="quiet">A dot stands for the value of '
        f"{escape(begun[0].entrant.title)}, a dash for a setting that a method does not have.</p>"
        f'<div class="scroll"><table class="differ"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def _cell(value: str | None, first_value: str | None, *, first: bool) -> str:
    if not first and value == first_value:
        return '<td class="same">·</td>'
    return f"<td>{escape(NONE if value is None else value)}</td>"


def _runs(results: Results) -> str:
    seeds = range(results.comparison.terms.seeds)
    head = "".join(f"<th>seed {seed}</th>" for seed in seeds)
    body = ""
    for contender in results.comparison.contenders:
        by_seed = {course.seed: course for course in contender.courses}
        cells = "".join(_run(results, contender, by_seed.get(seed), seed) for seed in seeds)
        body += f"<tr><th>{escape(contender.entrant.title)}</th>{cells}</tr>"
    return (
        '<details><summary>All runs and their own reports, which lie beside this page</summary><div class="scroll">'
        f'<table class="runs"><thead><tr><th>method</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        "</details>"
    )


def _run(results: Results, contender: Contender, course: Course | None, seed: int) -> str:
    if course is None:
        return "<td>not begun</td>"
    folder = results.comparison.folder
    report = run_folder_of(folder, contender.entrant.name, seed) / "report.html"
    words = f"{course.done} iterations {_MARKS[course.state]}"
    return f'<td><a href="{escape(report.relative_to(folder).as_posix())}">{words}</a></td>'


def _common(results: Results) -> str:
    begun = [contender for contender in results.comparison.contenders if contender.courses]
    if not begun:
        return ""
    differ = differences(results)
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>"
        for name, text in settings_of(begun[0]).items()
        if name not in differ
    )
    return (
        f'<details><summary>Settings that all methods share</summary><table class="settings">{rows}</table></details>'
    )
