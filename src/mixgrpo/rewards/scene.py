"""What a prompt asks to be in a picture, and whether the objects found in one answer it, by GenEval's rules.

Plain Python on boxes, labels, scores and colours: which detector found them does not matter here. Rules and numbers
are GenEval's (https://arxiv.org/abs/2310.11513 and its published evaluation); the partial score and the exact one
are those that Flow-GRPO trains on (https://arxiv.org/abs/2505.05470 and its published reward server).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mixgrpo.errors import RewardError
from mixgrpo.rewards.base import columns_of

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's colours."""
RELATIONS = ("left of", "right of", "above", "below")
"""GenEval's relative positions, of an object to an earlier one."""

_EXAMPLE = (
    '{"prompt": "a photo of a red cat left of a bench", "tag": "position", "include": [{"class": "bench", "count": 1}, '
    '{"class": "cat", "count": 1, "color": "red", "position": ["left of", 0]}]}'
)


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom are the first column and row that are not in it."""

    left: float
    top: float
    right: float
    bottom: float


class Detection(NamedTuple):
    """One object that was found."""

    label: str
    score: float
    """The detector's confidence, in [0, 1]."""
    box: Box
    color: str | None = None
    """One of `COLORS`; None if nobody asked."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One thing that a prompt asks for."""

    label: str
    count: int
    color: str | None = None
    relation: str | None = None
    """One of `RELATIONS`, to every object of the earlier thing `target`."""
    target: int = 0


@dataclass(frozen=True, slots=True)
class Unwanted:
    """What must not be there: `count` objects or more."""

    label: str
    count: int


@dataclass(frozen=True, slots=True)
class Scene:
    """What a prompt asks for."""

    tag: str
    """GenEval's name of the kind of task; "" if there is none."""
    include: tuple[Wanted, ...]
    exclude: tuple[Unwanted, ...]

    @property
    def labels(self) -> frozenset[str]:
        """All classes that matter."""
        return frozenset(thing.label for thing in (*self.include, *self.exclude))

    def colored(self) -> dict[str, int]:
        """Return the classes that must have a colour, with how many of their objects, the surest first, need one."""
        counts: dict[str, int] = {}
        for thing in self.include:
            if thing.color is not None:
                counts[thing.label] = max(thing.count, counts.get(thing.label, 0))
        return counts


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a picture answers a scene. A check is 1 if passed, 0 if not, NaN if nothing of the kind is asked."""

    correct: float
    """GenEval's verdict, 0 or 1: at least so many objects; of these, the surest so many are looked at further."""
    exact: float
    """The same with exactly so many objects, 0 or 1: Flow-GRPO's strict one."""
    partial: float
    """Flow-GRPO's training reward: the mean over all that is asked, up to 1, negative for far too many objects."""
    presence: float
    """Every class is there at least once."""
    count: float
    """Every class is there at least as often as asked, and nothing that is excluded."""
    color: float
    """The colours are as asked."""
    position: float
    """The relative positions are as asked."""


def read_scene(prompt: str) -> Scene:
    """Return what the columns `tag`, `include` and `exclude` of a prompt ask for, in GenEval's format.

    `include` is a list of things with the keys class, count, color and position, the latter a relation and the index
    of an earlier thing; `exclude` is one of things with class and count. Keys that are None count as not there.

    Raises:
        RewardError: The columns are missing, or not of that format.
    """
    columns = columns_of(prompt)
    include, exclude = columns.get("include"), columns.get("exclude")
    if include is None and exclude is None:
        raise RewardError(
            f"the geneval reward finds no column 'include' (nor 'exclude') for the prompt {str(prompt)!r}. It needs a "
            f"prompt file .jsonl with GenEval's columns in every line, as in: {_EXAMPLE}"
        )
    things = [_read_thing(prompt, "include", i, thing) for i, thing in enumerate(_as_list(prompt, "include", include))]
    banned = [_read_thing(prompt, "exclude", i, thing) for i, thing in enumerate(_as_list(prompt, "exclude", exclude))]
    if not things and not banned:
        raise _format_error(prompt, "include", "asks for nothing")
    return Scene(str(columns.get("tag") or ""), tuple(things), tuple(Unwanted(t.label, t.count) for t in banned))


def select(
    detections: Sequence[Detection], *, threshold: float, max_objects: int = 16, max_overlap: float = 1.0
) -> dict[str, list[Detection]]:
    """Sort detections into classes, the surest first, and drop what GenEval drops.

    Kept are scores above `threshold`, of these the best `max_objects` of a class, and of these, from the best down,
    what overlaps no kept one by `max_overlap` (intersection over union) or more; at 1, GenEval's setting, overlaps are
    not looked at.
    """
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda detection: -detection.score):
        if detection.score > threshold:
            found.setdefault(detection.label, []).append(detection)
    for label, objects in found.items():
        kept: list[Detection] = []
        for thing in objects[:max_objects]:
            if max_overlap == 1 or all(overlap(thing.box, other.box) < max_overlap for other in kept):
                kept.append(thing)
        found[label] = kept
    return found


def overlap(a: Box, b: Box) -> float:
    """Return intersection over union of two boxes; sides are one longer than their difference, as in GenEval."""
    common = _area(Box(max(a.left, b.left), max(a.top, b.top), min(a.right, b.right), min(a.bottom, b.bottom)))
    union = _area(a) + _area(b) - common
    return common / union if union else 0.0


def relations(a: Box, b: Box, *, margin: float = 0.1) -> set[str]:
    """Return the relative positions of `a` to `b`: none, one, or two.

    The distance of the centres counts, along each axis, only so far as it exceeds `margin` times the summed sides of
    the boxes; divided by the whole distance it must be more than one half.
    """
    distances = ((a.left + a.right - b.left - b.right) / 2, (a.top + a.bottom - b.top - b.bottom) / 2)
    sides = (a.right - a.left + b.right - b.left, a.bottom - a.top + b.bottom - b.top)
    beyond = [max(abs(d) - margin * s, 0.0) * math.copysign(1, d) for d, s in zip(distances, sides, strict=True)]
    if all(abs(distance) < 1e-3 for distance in beyond):
        return set()
    x, y = (distance / math.hypot(*distances) for distance in beyond)
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, true in holds.items() if true}


def judge(scene: Scene, found: Mapping[str, Sequence[Detection]], *, margin: float = 0.1) -> Verdict:
    """Say how far the objects `found`, by class and the surest first, answer a scene.

    Two things of one class look at the same objects, as in GenEval.
    """
    banned = [float(len(found.get(thing.label, ())) < thing.count) for thing in scene.exclude]
    enough = _check_things(scene, found, exact=False, margin=margin)
    exact = _check_things(scene, found, exact=True, margin=margin)
    # With exactly as many objects as asked for, nothing can be too many of a class that is also asked for.
    asked = {thing.label for thing in scene.include}
    others = [free for free, thing in zip(banned, scene.exclude, strict=True) if thing.label not in asked]
    parts = [*exact.counts, *exact.colors, *exact.positions, *others]
    presence = [float(bool(found.get(thing.label))) for thing in scene.include]
    return Verdict(
        correct=_all(enough.counts, banned, enough.colors, enough.positions),
        exact=_all(exact.counts, banned, exact.colors, exact.positions),
        partial=sum(parts) / len(parts),
        presence=_all(presence) if presence else math.nan,
        count=_all(enough.counts, banned),
        color=_all(enough.colors) if enough.colors else math.nan,
        position=_all(enough.positions) if enough.positions else math.nan,
    )


class _Checks(NamedTuple):
    """What became of everything that is asked: 1 is passed; a check that an earlier one makes impossible is 0."""

    counts: list[float]
    colors: list[float]
    positions: list[float]


def _check_things(scene: Scene, found: Mapping[str, Sequence[Detection]], *, exact: bool, margin: float) -> _Checks:
    """Check all things in their order; objects beyond the count are faults if `exact`, else not looked at."""
    checks = _Checks([], [], [])
    accepted: list[Sequence[Detection]] = []  # the objects of each thing so far; none if it failed a check
    for thing in scene.include:
        objects = found.get(thing.label, ())
        objects = objects if exact else objects[: thing.count]
        checks.counts.append(_agreement(len(objects), thing.count))
        passed = len(objects) == thing.count
        if thing.color is not None:
            right = sum(detection.color == thing.color for detection in objects)
            checks.colors.append(_agreement(right, thing.count) if passed else 0.0)
            passed = passed and right == thing.count
        if thing.relation is not None:
            targets = accepted[thing.target]
            pairs = [(a.box, b.box) for a in objects for b in targets]
            placed = bool(targets) and all(thing.relation in relations(*pair, margin=margin) for pair in pairs)
            passed = passed and placed
            checks.positions.append(float(passed))
        accepted.append(objects if passed else ())
    return checks


def _agreement(number: int, wanted: int) -> float:
    """Return 1 for as many as wanted, less in proportion to what is missing or too much."""
    return 1 - abs(wanted - number) / wanted


def _all(*checks: Sequence[float]) -> float:
    return float(all(check == 1 for group in checks for check in group))


def _area(box: Box) -> float:
    return max(box.right - box.left + 1, 0) * max(box.bottom - box.top + 1, 0)


def _as_list(prompt: str, column: str, given: Any) -> Sequence[Any]:
    if given is None:
        return []
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise _format_error(prompt, column, f"is not a list but {given!r}")
    return given


def _read_thing(prompt: str, column: str, index: int, given: Any) -> Wanted:
    where = f"{column}[{index}]"
    if not isinstance(given, Mapping):
        raise _format_error(prompt, where, f"is not an object but {given!r}")
    values = {key: value for key, value in given.items() if value is not None}
    known = {"class", "count", "color", "position"} if column == "include" else {"class", "count"}
    if unknown := sorted(values.keys() - known):
        raise _format_error(prompt, where, f"has the key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    label, count, color = values.get("class"), values.get("count"), values.get("color")
    if not isinstance(label, str) or not label:
        raise _format_error(prompt, f"{where}.class", f"must be the name of a class, got {label!r}")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise _format_error(prompt, f"{where}.count", f"must be a whole number from 1 up, got {count!r}")
    if color is not None and color not in COLORS:
        raise _format_error(prompt, f"{where}.color", f"must be one of {', '.join(COLORS)}, got {color!r}")
    if "position" not in values:
        return Wanted(label, count, color)
    return Wanted(label, count, color, *_read_position(prompt, f"{where}.position", index, values["position"]))


def _read_position(prompt: str, where: str, index: int, given: Any) -> tuple[str, int]:
    pair = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if len(pair) != 2 or pair[0] not in RELATIONS or not isinstance(pair[1], int) or not 0 <= pair[1] < index:
        raise _format_error(
            prompt,
            where,
            f"must be [relation, index of an earlier thing], the relation one of {', '.join(RELATIONS)}, got {given!r}",
        )
    return pair[0], pair[1]


def _format_error(prompt: str, where: str, what: str) -> RewardError:
    return RewardError(
        f"the geneval reward cannot read the columns of the prompt {str(prompt)!r}: {where} {what}. "
        f"A line of the prompt file .jsonl looks like: {_EXAMPLE}"
    )
