import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixgrpo.errors import RewardError
from mixgrpo.rewards.spelling import as_saved, asked_word, edit_distance, score_spelling


def score(read, asked):
    scores = score_spelling([read], torch.zeros(1, 3, 2, 2), [f'the word "{asked}"'])
    return scores.values.item(), scores.details["exact"].item()


@pytest.mark.parametrize(
    ("read", "asked", "value", "exact"),
    [
        ("RIVER", "RIVER", 1.0, 1.0),
        ("ri ver", "RIVER", 1.0, 1.0),
        ("\uff32IVER", "RIVER", 1.0, 1.0),
        ("RIVE", "RIVER", 0.8, 0.0),
        ("RIVERS", "RIVER", 0.8, 0.0),
        ("CAT CAT CAT", "CAT", 0.0, 0.0),
        ("", "CAT", 0.0, 0.0),
    ],
)
def test_what_was_read_is_compared_with_what_was_asked(read, asked, value, exact):
    assert score(read, asked) == (pytest.approx(value), exact)


def test_colours_are_those_of_a_file():
    images = torch.tensor([0.0, 0.3, 1.0, 1.7, -2.0, float("nan")])
    assert (as_saved(images) * 255).tolist() == pytest.approx([0, 76, 255, 255, 0, 0])


def test_the_asked_word_is_the_first_text_in_double_quotes():
    assert asked_word('the word "RIVER" in red, not "STONE"') == "RIVER"
    assert asked_word("a sign that says \u201cOpen Late\u201d") == "Open Late"


@pytest.mark.parametrize("text", ["a river", 'the word "" in red', 'the word "  " in red', "the word 'RIVER'"])
def test_a_prompt_without_a_word_in_double_quotes_is_an_error_that_names_it(text):
    with pytest.raises(RewardError, match="no word in double quotes in the prompt") as caught:
        asked_word(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abc", "abc", 0)],
)
def test_edit_distance_of_known_pairs(a, b, distance):
    assert edit_distance(a, b) == distance


@given(st.text("abc", max_size=6), st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance_is_a_metric(a, b, c):
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))
