"""What every page has: its frame, its sections, lists of notes, and how it is written."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from mixgrpo.errors import ConfigError
from mixgrpo.report.health import Level, Note

MARKS = {Level.ALARM: "!", Level.NOTE: "i", Level.GOOD: "✓"}


def html_page(title: str, content: str, extra: Sequence[str] = ()) -> str:
    """Return a page that needs nothing else; `extra` names assets beside `style.css` and `script.js`."""
    assets = resources.files("mixgrpo.report") / "assets"
    names = ("style.css", "script.js", *extra)
    texts = {name: (assets / name).read_text(encoding="utf-8") for name in names}
    style, script = ("".join(text for name, text in texts.items() if name.endswith(end)) for end in (".css", ".js"))
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


def section(name: str, title: str, content: str) -> str:
    """Return a section of the page; `name` is what links to it say."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{content}</section>'


def panel_grid(panels: Sequence[str]) -> str:
    """Return panels side by side where there is room."""
    return f'<div class="panels">{"".join(panels)}</div>' if panels else '<p class="empty-note">No iteration yet.</p>'


def note_list(notes: Sequence[Note]) -> str:
    """Return notes as a list."""
    items = [
        f'<li class="{note.level}"><i aria-hidden="true">{MARKS[note.level]}</i><div><b>{escape(note.title)}.</b> '
        f"{escape(note.text)}</div></li>"
        for note in notes
    ]
    return f'<ul class="notes">{"".join(items)}</ul>' if items else '<p class="empty-note">Nothing to judge yet.</p>'


def write_page(output: Path, text: str) -> None:
    """Write a file whole or not at all: a page is rewritten while its run goes on, and nobody must see half of it.

    Raises:
        ConfigError: if it cannot be written there.
    """
    if output.is_dir():
        raise ConfigError(
            f"{output} is a folder; give the name of the file to write, such as {output / 'report.html'}."
        )
    part = output.with_name(f"{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(output)
    except OSError as error:
        raise ConfigError(f"The report cannot be written to {output}: {error.strerror}.") from error
