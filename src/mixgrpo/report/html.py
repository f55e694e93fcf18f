"""The page: one HTML file that holds everything, to be read now or in ten years, on any machine, without a network."""

from html import escape
from importlib import resources
from pathlib import Path

from mixgrpo.errors import ConfigError
from mixgrpo.report.appendix import evaluation_table, settings_section
from mixgrpo.report.cost import cost_panels
from mixgrpo.report.curves import constants, optimiser_panels, reward_panels, smoothing_width
from mixgrpo.report.gallery import gallery_section
from mixgrpo.report.headline import headline_section, page_header
from mixgrpo.report.health import Level, Note, health_notes
from mixgrpo.report.read import Run, read_run
from mixgrpo.report.summary import Summary, summarise
from mixgrpo.report.timeline import window_panels, window_words

MARKS = {Level.ALARM: "!", Level.NOTE: "i", Level.GOOD: "✓"}


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write the report of the run folder `run`, by default to `report.html` in it, and return its path.

    Raises:
        CheckpointError: if the run folder is missing or damaged.
        ConfigError: if its `resolved.json` is damaged, or `output` cannot be written.
    """
    output = run / "report.html" if output is None else output
    _write(output, render(read_run(run)))
    return output


def render(run: Run) -> str:
    """Return the report of `run` as an HTML page."""
    summary = summarise(run)
    notes = health_notes(run, summary)
    alarms = sum(note.level is Level.ALARM for note in notes)
    title = str(run.setting("name") or run.path.resolve().name)
    toggle = _clock_toggle() if run.train or len(run.evals) > 1 else ""
    sections = [
        headline_section(run, summary, alarms),
        _section("pictures", "Same noise, before and after", gallery_section(run, summary)),
        _section("curves", "Curves", toggle + _curves(run, summary)),
        _section("window", "Window", f"<p>{escape(window_words(run))}</p>{_panels(window_panels(run))}"),
        _section("cost", "Cost", _panels(cost_panels(run))),
        _section("health", "Health", _health(notes)),
        _section("settings", "Settings and how to go on", settings_section(run)),
    ]
    content = page_header(run, summary, title) + "".join(sections)
    return _page(f"{title} · MixGRPO", content)


def _curves(run: Run, summary: Summary) -> str:
    rewards, optimiser = reward_panels(run, summary), optimiser_panels(run)
    if not rewards and not optimiser:
        return '<p class="empty-note">Nothing has been measured yet.</p>'
    words = (
        '<p class="quiet">A training point is the mean over the samples of one iteration, drawn with noise in the '
        "window; a held-out point is an evaluation by ODE sampling with fixed noise. Bars are one standard error.</p>"
    )
    width = smoothing_width(len(run.train))
    lines = f'<p class="quiet">Bold: mean of {width} iterations; faint: each iteration.</p>' if width > 1 else ""
    below = f'<h3 class="part">The update</h3>{lines}{_panels(optimiser)}' if optimiser else ""
    return words + _panels(rewards) + evaluation_table(summary) + below + constants(run)


def _clock_toggle() -> str:
    return (
        '<fieldset class="toggle"><legend>Horizontal axis</legend>'
        '<label><input type="radio" name="clock" id="clock-iteration" checked><span>iterations</span></label>'
        '<label><input type="radio" name="clock" id="clock-time"><span>running time</span></label></fieldset>'
    )


def _health(notes: list[Note]) -> str:
    items = [
        f'<li class="{note.level}"><i aria-hidden="true">{MARKS[note.level]}</i><div><b>{escape(note.title)}.</b> '
        f"{escape(note.text)}</div></li>"
        for note in notes
    ]
    return f'<ul class="notes">{"".join(items)}</ul>' if items else '<p class="empty-note">Nothing to judge yet.</p>'


def _panels(panels: list[str]) -> str:
    return f'<div class="panels">{"".join(panels)}</div>' if panels else '<p class="empty-note">No iteration yet.</p>'


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{escape(title)}</h2>{content}</section>'


def _page(title: str, content: str) -> str:
    assets = resources.files("mixgrpo.report") / "assets"
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    # The policy makes the promise checkable: a browser loads nothing for this page, whatever it contains.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{content}\n</main>\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _write(output: Path, text: str) -> None:
    if output.is_dir():
        raise ConfigError(
            f"{output} is a folder; give the name of the file to write, such as {output / 'report.html'}."
        )
    part = output.with_name(f"{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # A report is rewritten while its run goes on: whoever opens it must never see half of it.
        part.write_text(text, encoding="utf-8")
        part.replace(output)
    except OSError as error:
        raise ConfigError(f"The report cannot be written to {output}: {error.strerror}.") from error
