"""GenEval's rules: cases worked out by hand, and a reference that says the same in another way."""

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgrpo.errors import RewardError
from mixgrpo.rewards.base import columns_of
from mixgrpo.rewards.scene import (
    COLORS,
    RELATIONS,
    Box,
    Detection,
    Scene,
    Unwanted,
    Wanted,
    judge,
    overlap,
    read_scene,
    relations,
    select,
)


class Line(str):
    """A prompt with the columns of its line."""

    def __new__(cls, text, **columns):
        line = super().__new__(cls, text)
        line.rest = MappingProxyType(columns)
        return line

    @property
    def columns(self) -> Mapping:
        return self.rest


def square(x, y, side=10):
    return Box(x, y, x + side, y + side)


def things(label, *boxes, color=None):
    return [Detection(label, 0.99 - i / 100, box, color) for i, box in enumerate(boxes)]


def scene(*include, exclude=()):
    return Scene("", include, tuple(exclude))


# What the columns say


def test_the_columns_of_a_plain_text_are_none():
    assert dict(columns_of("a cat")) == {}
    assert dict(columns_of(Line("a cat", tag="x"))) == {"tag": "x"}


def test_a_line_of_geneval_is_read():
    """The keys that a table of a data set fills with null are as good as not there."""
    line = Line(
        "two red cats left of a bench",
        tag="position",
        include=[
            {"class": "bench", "count": 1, "color": None, "position": None},
            {"class": "cat", "count": 2, "color": "red", "position": ["left of", 0]},
        ],
        exclude=[{"class": "cat", "count": 3}],
    )
    read = read_scene(line)
    assert read.tag == "position"
    assert read.include == (Wanted("bench", 1), Wanted("cat", 2, "red", "left of", 0))
    assert read.exclude == (Unwanted("cat", 3),)
    assert read.labels == {"bench", "cat"}
    assert read.colored() == {"cat": 2}


def test_tag_and_exclude_may_be_missing():
    assert read_scene(Line("a cat", include=[{"class": "cat", "count": 1}])) == scene(Wanted("cat", 1))
    assert read_scene(Line("no cat", exclude=[{"class": "cat", "count": 1}])) == scene(exclude=[Unwanted("cat", 1)])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"no column 'include' .*'a cat'.*prompt file \.jsonl"),
        ({"tag": "counting"}, "no column 'include'"),
        ({"include": []}, "asks for nothing"),
        ({"include": "cat"}, "include is not a list but 'cat'"),
        ({"include": {"class": "cat"}}, "include is not a list"),
        ({"include": ["cat"]}, r"include\[0\] is not an object but 'cat'"),
        ({"include": [{"count": 1}]}, r"include\[0\]\.class must be the name of a class, got None"),
        ({"include": [{"class": "", "count": 1}]}, r"class must be the name"),
        ({"include": [{"class": "cat"}]}, r"include\[0\]\.count must be a whole number from 1 up, got None"),
        ({"include": [{"class": "cat", "count": 0}]}, r"count must be a whole number from 1 up, got 0"),
        ({"include": [{"class": "cat", "count": True}]}, r"count must be a whole number"),
        ({"include": [{"class": "cat", "count": 1, "color": "teal"}]}, r"color must be one of red.*white, got 'teal'"),
        ({"include": [{"class": "cat", "count": 1, "colour": "red"}]}, r"key 'colour'; known are class, color, count"),
        ({"exclude": [{"class": "cat", "count": 1, "color": "red"}]}, r"exclude\[0\] has the key 'color'"),
        ({"include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}, r"index of an earlier thing"),
        ({"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["near", 0]}]}, "'near'"),
        ({"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": "above"}]}, "'above'"),
        ({"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["above", -1]}]}, "-1"),
    ],
)
def test_columns_of_another_format_are_named_with_an_example(columns, message):
    with pytest.raises(RewardError, match=message) as error:
        read_scene(Line("a cat", **columns))
    assert '"include": [{"class": "bench", "count": 1}' in str(error.value)


# Which objects count


def test_objects_must_be_surer_than_the_threshold_and_the_surest_come_first():
    scores = {0.3: "cat", 0.31: "cat", 0.9: "dog", 0.5: "cat", 0.1: "dog"}
    found = select([Detection(label, score, square(0, 0)) for score, label in scores.items()], threshold=0.3)
    assert {label: [thing.score for thing in objects] for label, objects in found.items()} == {
        "dog": [0.9],
        "cat": [0.5, 0.31],
    }


def test_only_the_surest_16_of_a_class_count():
    cats = [Detection("cat", 0.4 + i / 100, square(i, 0)) for i in range(20)]
    found = select([*cats, Detection("dog", 0.35, square(0, 0))], threshold=0.3)
    assert [thing.score for thing in found["cat"]] == [cat.score for cat in cats[:3:-1]]
    assert len(found["dog"]) == 1
    assert len(select(cats, threshold=0.3, max_objects=2)["cat"]) == 2


def test_overlapping_objects_of_a_class_count_once_if_that_is_wished():
    """Boxes of 10 by 10, each 1 to the right of the last: sides count 11, so neighbours share 10 of 12 columns."""
    boxes = [square(i, 0) for i in range(4)]
    cats = [Detection("cat", 0.9 - i / 10, box) for i, box in enumerate(boxes)]
    dog = Detection("dog", 0.35, boxes[0])
    assert [overlap(boxes[0], box) for box in boxes] == pytest.approx([1, 10 / 12, 9 / 13, 8 / 14])
    assert overlap(square(0, 0), square(30, 0)) == 0
    assert len(select([*cats, dog], threshold=0.3, max_overlap=1)["cat"]) == 4
    kept = select([*cats, dog], threshold=0.3, max_overlap=0.75)
    # The second overlaps the first; the third not enough; the fourth overlaps the third, which is kept.
    assert kept == {"cat": [cats[0], cats[2]], "dog": [dog]}
    assert select(cats, threshold=0.3, max_overlap=9 / 13)["cat"] == [cats[0], cats[3]]


# Where objects are


@pytest.mark.parametrize(
    ("offset", "expected"),
    [  # boxes of 10: up to 2 along an axis is no distance
        ((-20, 0), {"left of"}),
        ((20, 0), {"right of"}),
        ((0, -20), {"above"}),
        ((0, 20), {"below"}),
        ((0, 0), set()),
        ((2, 0), set()),
        ((-2, 2), set()),
        ((3.9, 0), set()),  # 1.9 / 3.9
        ((4.1, 0), {"right of"}),  # 2.1 / 4.1
        ((-20, -20), {"left of", "above"}),  # 18 / 28.3
        ((20, 10), {"right of"}),  # 18 / 22.4 and 8 / 22.4
        ((10, 10), {"right of", "below"}),  # 8 / 14.1
        ((6, 6), set()),  # 4 / 8.5
    ],
)
def test_positions_are_those_of_geneval(offset, expected):
    assert relations(square(*offset), square(0, 0)) == expected


def test_the_margin_grows_with_the_objects():
    a, b = Box(0, 0, 10, 10), Box(30, 0, 130, 10)  # centres 75 apart, sides 110 together
    assert relations(a, b) == {"left of"}  # (75 - 11) / 75
    assert relations(a, b, margin=0.35) == set()  # (75 - 38.5) / 75 = 0.487
    assert relations(a, b, margin=0.34) == {"left of"}  # 0.501


def reference_relations(a, b, margin):
    """The same with numpy: which unit directions the shortened offset leans to."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = (((x + r) / 2, (y + d) / 2, r - x, d - y) for x, y, r, d in (a, b))
    offset = np.array([ax - bx, ay - by])
    short = np.sign(offset) * np.clip(np.abs(offset) - margin * np.array([aw + bw, ah + bh]), 0, None)
    if np.abs(short).max() < 1e-3:
        return set()
    axes = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
    return {name for name, axis in axes.items() if short @ axis > 0.5 * np.sqrt(offset @ offset)}


boxes = st.builds(
    lambda x, y, w, h: Box(x, y, x + w, y + h),
    *[st.integers(0, 60)] * 2,
    *[st.integers(1, 40)] * 2,
)


@given(a=boxes, b=boxes, margin=st.sampled_from([0.0, 0.1, 0.3]))
def test_positions_equal_the_reference_and_turn_around(a, b, margin):
    there = relations(a, b, margin=margin)
    assert there == reference_relations(a, b, margin)
    opposite = dict(zip(RELATIONS, ["right of", "left of", "below", "above"], strict=True))
    assert relations(b, a, margin=margin) == {opposite[name] for name in there}
    assert len(there & {"left of", "right of"}) < 2


# The verdict

CATS = [square(0, 0), square(40, 0), square(80, 0)]
ONE_CAT, TWO_CATS = scene(Wanted("cat", 1)), scene(Wanted("cat", 2), exclude=[Unwanted("cat", 3)])
RED_CAT = scene(Wanted("cat", 1, "red"))
RED_CATS = scene(Wanted("cat", 2, "red"))
ON_BENCH = scene(Wanted("bench", 1), Wanted("cat", 1, relation="above"))
BENCH = things("bench", square(0, 40))
NAN = math.nan


@pytest.mark.parametrize(
    ("asked", "found", "correct", "exact", "partial", "checks"),
    [
        # presence, count, color, position
        (ONE_CAT, {}, 0, 0, 0.0, (0, 0, NAN, NAN)),
        (ONE_CAT, {"dog": things("dog", CATS[0])}, 0, 0, 0.0, (0, 0, NAN, NAN)),
        (ONE_CAT, {"cat": things("cat", CATS[0])}, 1, 1, 1.0, (1, 1, NAN, NAN)),
        (ONE_CAT, {"cat": things("cat", *CATS)}, 1, 0, -1.0, (1, 1, NAN, NAN)),
        (TWO_CATS, {"cat": things("cat", CATS[0])}, 0, 0, 0.5, (1, 0, NAN, NAN)),
        (TWO_CATS, {"cat": things("cat", *CATS[:2])}, 1, 1, 1.0, (1, 1, NAN, NAN)),
        (TWO_CATS, {"cat": things("cat", *CATS)}, 0, 0, 0.5, (1, 0, NAN, NAN)),
        (RED_CAT, {"cat": things("cat", CATS[0], color="red")}, 1, 1, 1.0, (1, 1, 1, NAN)),
        (RED_CAT, {"cat": things("cat", CATS[0], color="blue")}, 0, 0, 0.5, (1, 1, 0, NAN)),
        (RED_CAT, {}, 0, 0, 0.0, (0, 0, 0, NAN)),
        # The surest one is red: enough for GenEval. With a second one the exact count is missed, and so the colour.
        (RED_CAT, {"cat": [*things("cat", CATS[0], color="red"), *things("cat", CATS[1])]}, 1, 0, 0.0, (1, 1, 1, NAN)),
        # Only the surest one is blue: the red one after it does not help.
        (
            RED_CAT,
            {"cat": [*things("cat", CATS[0], color="blue"), *things("cat", CATS[1], color="red")]},
            *(0, 0, 0.0, (1, 1, 0, NAN)),
        ),
        (
            RED_CATS,
            {"cat": [*things("cat", CATS[0], color="red"), *things("cat", CATS[1], color="pink")]},
            *(0, 0, 0.75, (1, 1, 0, NAN)),
        ),
        (ON_BENCH, {"cat": things("cat", CATS[0]), "bench": BENCH}, 1, 1, 1.0, (1, 1, NAN, 1)),
        (ON_BENCH, {"cat": things("cat", square(0, 90)), "bench": BENCH}, 0, 0, 2 / 3, (1, 1, NAN, 0)),
        (ON_BENCH, {"cat": things("cat", CATS[0])}, 0, 0, 1 / 3, (0, 0, NAN, 0)),
        (ON_BENCH, {"bench": BENCH}, 0, 0, 1 / 3, (0, 0, NAN, 0)),
        # Two benches: GenEval looks at the surest; the exact count is missed, and there is no bench to be above.
        (
            ON_BENCH,
            {"cat": things("cat", CATS[0]), "bench": [*BENCH, *things("bench", square(80, 0))]},
            *(1, 0, 1 / 3, (1, 1, NAN, 1)),
        ),
    ],
)
def test_the_verdict_on_a_scene(asked, found, correct, exact, partial, checks):
    verdict = judge(asked, found)
    assert (verdict.correct, verdict.exact) == (correct, exact)
    assert verdict.partial == pytest.approx(partial)
    got = (verdict.presence, verdict.count, verdict.color, verdict.position)
    assert got == pytest.approx(checks, nan_ok=True)


def test_every_object_must_be_placed_to_every_target():
    asked = scene(Wanted("bench", 2), Wanted("cat", 2, relation="above"))
    benches = things("bench", square(0, 40), square(40, 40))
    assert judge(asked, {"bench": benches, "cat": things("cat", square(20, 0), square(25, 0))}).correct == 1
    assert judge(asked, {"bench": benches, "cat": things("cat", square(20, 0), square(20, 80))}).correct == 0
    assert judge(asked, {"bench": benches, "cat": things("cat", square(20, 0), square(90, 30))}).correct == 0


def test_a_thing_of_the_wrong_colour_is_no_target():
    asked = scene(Wanted("bench", 1, "red"), Wanted("cat", 1, relation="above"))
    found = {"bench": things("bench", square(0, 40), color="red"), "cat": things("cat", CATS[0])}
    assert judge(asked, found).position == 1
    found["bench"] = things("bench", square(0, 40), color="blue")
    assert judge(asked, found).position == 0


def test_the_margin_is_passed_on():
    found = {"cat": things("cat", square(0, 35)), "bench": things("bench", square(0, 40))}  # 5 apart: (5 - 2) / 5
    assert judge(ON_BENCH, found).correct == 1
    assert judge(ON_BENCH, found, margin=0.2).correct == 0


def test_a_class_that_must_not_be_there_counts_as_one_thing_of_the_partial_score():
    asked = scene(Wanted("cat", 1), exclude=[Unwanted("dog", 1)])
    found = {"cat": things("cat", CATS[0])}
    assert judge(asked, found).partial == judge(asked, found).exact == 1
    found["dog"] = things("dog", CATS[1])
    assert (judge(asked, found).partial, judge(asked, found).exact, judge(asked, found).count) == (0.5, 0, 0)
    nothing = scene(exclude=[Unwanted("dog", 1)])
    assert math.isnan(judge(nothing, {}).presence)
    assert (judge(nothing, {}).correct, judge(nothing, found).correct) == (1, 0)


labels = st.sampled_from(["cat", "dog"])
colors = st.sampled_from([None, *COLORS[:2]])
detections = st.lists(st.builds(Detection, labels, st.just(0.5), boxes, st.sampled_from(COLORS[:2])), max_size=6)


@st.composite
def scenes(draw):
    include = []
    for i in range(draw(st.integers(1, 3))):
        relation = draw(st.sampled_from([None, *RELATIONS])) if i else None
        target = draw(st.integers(0, i - 1)) if relation else 0
        include.append(Wanted(draw(labels), draw(st.integers(1, 2)), draw(colors), relation, target))
    exclude = [Unwanted(draw(labels), draw(st.integers(1, 4)))] if draw(st.booleans()) else []
    return scene(*include, exclude=exclude)


@given(asked=scenes(), objects=detections)
def test_the_verdict_equals_a_recursive_statement_of_the_rules(asked, objects):
    """A thing is right if it is there, in its colour, and placed to a thing that is right."""
    found = {label: [thing for thing in objects if thing.label == label] for label in ("cat", "dog")}

    def looked_at(i, exact):
        thing = asked.include[i]
        return found[thing.label] if exact else found[thing.label][: thing.count]

    def right(i, exact):
        thing, seen = asked.include[i], looked_at(i, exact)
        placed = thing.relation is None or (
            right(thing.target, exact)
            and all(
                thing.relation in reference_relations(a.box, b.box, 0.1)
                for a in seen
                for b in looked_at(thing.target, exact)
            )
        )
        return len(seen) == thing.count and all(s.color == (thing.color or s.color) for s in seen) and placed

    free = all(len(found[thing.label]) < thing.count for thing in asked.exclude)
    verdict = judge(asked, found)
    assert verdict.correct == (free and all(right(i, False) for i in range(len(asked.include))))
    assert verdict.exact == (free and all(right(i, True) for i in range(len(asked.include))))
    assert verdict.exact <= verdict.correct
    assert (verdict.partial == 1) >= (verdict.exact == 1)
    passed = [v for v in (verdict.count, verdict.color, verdict.position) if not math.isnan(v)]
    assert verdict.correct == min(passed)
