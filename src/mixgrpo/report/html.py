"""The page of a run: one HTML file that holds everything, to be read now or in ten years, on any machine."""

from html import escape
from pathlib import Path

from mixgrpo.report.appendix import evaluation_table, reward_table, sampler_table, settings_section
from mixgrpo.report.cost import cost_panels, memory_words
from mixgrpo.report.curves import constants, diversity_panels, optimiser_panels, reward_panels, smoothing_width
from mixgrpo.report.gallery import gallery_section
from mixgrpo.report.headline import headline_section, page_header
from mixgrpo.report.health import Level, alarm_notes, health_notes
from mixgrpo.report.page import html_page, note_list, panel_grid, section, write_page
from mixgrpo.report.read import Run, read_run
from mixgrpo.report.summary import Summary, summarise
from mixgrpo.report.timeline import window_panels, window_words


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write the report of the run folder `run`, by default to `report.html` in it, and return its path.

    Raises:
        CheckpointError: if the run folder is missing or damaged.
        ConfigError: if its `resolved.json` is damaged, or `output` cannot be written.
    """
    output = run / "report.html" if output is None else output
    write_page(output, render(read_run(run)))
    return output


def render(run: Run) -> str:
    """Return the report of `run` as an HTML page."""
    summary = summarise(run)
    notes = health_notes(run, summary)
    alarms = sum(note.level is Level.ALARM for note in notes)
    title = str(run.setting("name") or run.path.resolve().name)
    loudest = [note for note in alarm_notes(run, summary) if note.level is Level.ALARM]
    toggle = _clock_toggle() if run.train or len(run.evals) > 1 else ""
    sections = [
        headline_section(run, summary, alarms, note_list(loudest) if loudest else ""),
        section("pictures", "Same noise, before and after", gallery_section(run, summary)),
        section("curves", "Curves", toggle + _curves(run, summary)),
        section("window", "Window", _paragraph(window_words(run)) + panel_grid(window_panels(run))),
        section("cost", "Cost", _paragraph(memory_words(run)) + panel_grid(cost_panels(run))),
        section("health", "Health", note_list(notes)),
        section("settings", "Settings and how to go on", settings_section(run)),
    ]
    content = page_header(run, summary, title) + "".join(sections)
    return html_page(f"{title} · MixGRPO", content)


def _curves(run: Run, summary: Summary) -> str:
    rewards, optimiser = [*reward_panels(run, summary), *diversity_panels(run)], optimiser_panels(run)
    if not rewards and not optimiser:
        return '<p class="empty-note">Nothing has been measured yet.</p>'
    words = (
        '<p class="quiet">A training point is the mean over the samples of one iteration, as training draws them; a '
        "held-out point is an evaluation by ODE sampling with fixed noise. Bars are one standard error.</p>"
    )
    width = smoothing_width(len(run.train))
    lines = f'<p class="quiet">Bold: mean of {width} iterations; faint: each iteration.</p>' if width > 1 else ""
    below = f'<h3 class="part">The update</h3>{lines}{panel_grid(optimiser)}' if optimiser else ""
    tables = evaluation_table(run, summary) + sampler_table(run, summary) + reward_table(run)
    return words + panel_grid(rewards) + tables + below + constants(run)


def _paragraph(words: str) -> str:
    return f"<p>{escape(words)}</p>" if words else ""


def _clock_toggle() -> str:
    return (
        '<fieldset class="toggle"><legend>Horizontal axis</legend>'
        '<label><input type="radio" name="clock" id="clock-iteration" checked><span>iterations</span></label>'
        '<label><input type="radio" name="clock" id="clock-time"><span>running time</span></label></fieldset>'
    )
