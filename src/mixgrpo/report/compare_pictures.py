"""The same prompts from the same noise, as every method draws them at its end."""

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

from mixgrpo.report.compare_results import Results
from mixgrpo.report.comparison import Course
from mixgrpo.report.gallery import Picture, embed
from mixgrpo.report.text import count

MAX_PROMPTS = 12
"""Prompts whose pictures are embedded."""

LARGEST = 320
"""Larger pictures are scaled down to this many pixels a side: there is one for every method."""


ROOM_WIDE, ROOM_MEDIUM = 13, 7
"""Pictures that stand beside each other on a wide and on a narrower page; `compare.js` has the same numbers."""


def picture_section(results: Results, colors: Mapping[str, int]) -> str:
    """Return a row for every prompt: before training, then every method's first run at its last evaluation."""
    courses = [contender.courses[0] for contender in results.comparison.contenders if contender.courses]
    courses = [course for course in courses if course.run.sheets and course.run.prompts]
    if not courses:
        return '<p class="empty-note">No pictures were kept.</p>'
    titles = {method.name: method.title for method in results.methods}
    prompts = courses[0].run.prompts[:MAX_PROMPTS]
    # The picture before training is one more; rows of equal length whatever the number of methods.
    wide, medium = (_columns(len(courses) + 1, room) for room in (ROOM_WIDE, ROOM_MEDIUM))
    rows = "".join(_row(number, prompt, courses, titles, colors) for number, prompt in enumerate(prompts))
    strips = f'<div class="strips" style="--wide:{wide};--medium:{medium}">{rows}</div>'
    return f'<p class="quiet">{escape(_words(courses))}</p>{strips}'


def _columns(pictures: int, room: int) -> int:
    rows = math.ceil(pictures / room)
    return math.ceil(pictures / rows)


def _words(courses: list[Course]) -> str:
    seeds = sorted({course.seed for course in courses})
    ends = {course.run.sheets[-1].iteration for course in courses}
    when = count(ends.pop(), "iteration") if len(ends) == 1 else "its last evaluation"
    which = f"seed {seeds[0]}" if len(seeds) == 1 else "the first seed that has begun"
    return f"ODE sampling from the same noise, before training and after {when} of each method ({which})."


def _row(number: int, prompt: str, courses: list[Course], titles: Mapping[str, str], colors: Mapping[str, int]) -> str:
    first = next((course for course in courses if course.run.sheets[0].iteration == 0), None)
    shots = [_shot(_file(first, number, 0), "before", prompt)] if first is not None else []
    for course in courses:
        # Runs of one comparison have the same held-out prompts; another one must not stand in the row.
        same = number < len(course.run.prompts) and course.run.prompts[number] == prompt
        path, title = _file(course, number, -1) if same else None, titles[course.method]
        shots.append(_shot(path, title, prompt, key=course.method, color=colors[course.method]))
    caption = f"<figcaption>{escape(prompt)}</figcaption>"
    return f'<figure class="strip">{caption}<div class="cells">{"".join(shots)}</div></figure>'


def _file(course: Course, number: int, sheet: int) -> Path | None:
    pictures = course.run.sheets[sheet].pictures
    return pictures[number] if number < len(pictures) else None


def _shot(path: Path | None, title: str, prompt: str, *, key: str = "", color: int = 0) -> str:
    place = f' data-key="{escape(key)}"' if key else ""
    return (
        f'<div class="cell k{color}"{place}><span>{escape(title)}</span>'
        f"{_image(embed(path, largest=LARGEST), f'{prompt}, {title}')}</div>"
    )


def _image(picture: Picture | None, words: str) -> str:
    if picture is None:
        return '<div class="gone">missing</div>'
    css = ' class="crisp"' if picture.is_small else ""
    return f'<img{css} src="{picture.uri}" width="{picture.width}" height="{picture.height}" alt="{escape(words)}">'
