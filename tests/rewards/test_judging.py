"""From a judge's words to a score."""

import math

import pytest

from mixgrpo.errors import ConfigError, RewardError
from mixgrpo.rewards.judging import TEMPLATES, AnswerReader, Candidate, Token, fill, find_template
from mixgrpo.rewards.options import VlmOptions

DEFAULT = VlmOptions.model_fields["parse"].default


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Score: 4", 4.0),
        ("Score: 3.5", 3.5),
        ("score:2", 2.0),
        ("**Score:** 4", 4.0),
        ("**Score**: 4.", 4.0),
        ("The first thought was Score: 2, but the hands are fine.\nScore: 5\n", 5.0),
        ("<think>maybe Score: 1</think>Score: 3", 3.0),
    ],
)
def test_the_default_reads_the_last_score(answer: str, score: float) -> None:
    assert AnswerReader(DEFAULT, 1, 5).read(answer) == score


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("A lovely picture of a cat, well done!", "there is no score"),
        ("I'm sorry, but I can't help with that.", "there is no score"),
        ("", "there is no score"),
        ("Score: four", "there is no score"),
        ("Score: N", "there is no score"),
        ("Score (1-5): 4", "there is no score"),  # rather than 1
        ("Score: 4/5", "there is no score"),  # which scale is meant is not said
        ("Score: 45/50", "there is no score"),
        ("Score: 4.5 / 10", "there is no score"),
        ("Score: 4.5.1", "there is no score"),
        ("Score: 6", "the score 6 is not from 1 to 5"),
        ("Score: 0.99", "the score 0.99 is not from 1 to 5"),
        ("Score: -3", "the score -3 is not from 1 to 5"),
        ("Score: 45", "the score 45 is not from 1 to 5"),
    ],
)
def test_an_answer_without_a_score_in_range_is_an_error_that_quotes_it(answer: str, why: str) -> None:
    with pytest.raises(RewardError) as error:
        AnswerReader(DEFAULT, 1, 5).read(answer)
    assert str(error.value) == f"{why}; the answer was {answer!r}"


def test_only_the_first_200_characters_of_an_answer_are_quoted() -> None:
    with pytest.raises(RewardError) as error:
        AnswerReader(DEFAULT, 1, 5).read("ab" * 500)
    assert str(error.value) == f"there is no score; the answer was '{'ab' * 100}'"


def test_a_pattern_of_ones_own() -> None:
    reader = AnswerReader(r"Alignment Score \(1-5\): ([\w.]+)", 1, 5)
    assert reader.read("Alignment Score (1-5): 3.25, Coherence Score (1-5): 2") == 3.25
    with pytest.raises(RewardError, match="the score 'good' is no number"):
        reader.read("Alignment Score (1-5): good")
    with pytest.raises(RewardError, match="not from 1 to 5"):
        reader.read("Alignment Score (1-5): nan")
    with pytest.raises(RewardError, match="no score"):
        AnswerReader(r"Score:(?: (\d))?", 1, 5).read("Score:")


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"score": 3}', 3.0),
        ('```json\n{"reason": "a {dark} one", "score": 0.5}\n```', 0.5),
        ('first {"score": 1} then {"score": 2} and {"other": 3} {', 2.0),
        ('{"parts": {"score": 1}, "score": 4}', 4.0),
    ],
)
def test_a_score_in_json(answer: str, score: float) -> None:
    assert AnswerReader("json:score", 0, 5).read(answer) == score


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("3", "no JSON object with 'score'"),
        ('{"Score": 3}', "no JSON object with 'score'"),
        ('{"score": 3', "no JSON object with 'score'"),
        ('{"parts": {"score": 1}}', "no JSON object with 'score'"),
        ('{"score": "3"}', "'score' is no number but '3'"),
        ('{"score": true}', "'score' is no number but True"),
        ('{"score": null}', "'score' is no number but None"),
        ('{"score": NaN}', "the score nan is not from 0 to 5"),
        ('{"score": 9}', "the score 9 is not from 0 to 5"),
    ],
)
def test_json_without_a_score_in_range_is_an_error(answer: str, why: str) -> None:
    with pytest.raises(RewardError, match=why):
        AnswerReader("json:score", 0, 5).read(answer)


def weighed(text: str, **probabilities: float) -> Token:
    return Token(text, [Candidate(token.replace("_", " "), math.log(p)) for token, p in probabilities.items()])


def plain(*texts: str) -> list[Token]:
    return [Token(text, [Candidate(text, 0.0)]) for text in texts]


def test_the_expected_score_is_the_mean_over_the_digits_that_were_weighed() -> None:
    place = Token(
        " 4", [Candidate(text, math.log(p)) for text, p in [(" 4", 0.5), (" 5", 0.2), ("3", 0.1), ("4", 0.1)]]
    )
    odd = place._replace(candidates=[*place.candidates, Candidate(" four", math.log(0.05)), Candidate("7", -5.0)])
    tokens = [*plain("I see", " 2 cats. ", "Score", ":"), odd, *plain("\n", "<|end|>")]
    expected = (4 * 0.5 + 5 * 0.2 + 3 * 0.1 + 4 * 0.1) / 0.9  # by hand: only 1 to 5 count, and their sum is 1
    assert AnswerReader(DEFAULT, 1, 5).expect(tokens) == pytest.approx(expected)


def test_the_expected_score_is_taken_at_the_last_score() -> None:
    one = Token("1", [Candidate("1", 0.0)])
    five = Token("5", [Candidate("5", 0.0)])
    tokens = [*plain("Score:", " "), one, *plain(" no. ", "Score:", " "), five]
    assert AnswerReader(DEFAULT, 1, 5).expect(tokens) == 5.0
    assert AnswerReader(r"(\d)", 1, 5).expect([five]) == 5.0


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        (plain("Score:", " good"), "there is no score; the answer was 'Score: good'"),
        (plain("Score:", " 7"), "the score 7 is not from 1 to 5"),
        (plain("Score:", " 4", ".", "5"), "logprobs needs whole scores, got 4.5"),
        ([*plain("Score:"), Token(" 4", [])], "no score is among the tokens weighed in place of ' 4'"),
        ([*plain("Score:"), Token(" 4", [Candidate(" 6", 0.0)])], "no score is among the tokens"),
    ],
)
def test_tokens_without_a_score_are_an_error(tokens: list[Token], why: str) -> None:
    with pytest.raises(RewardError, match=why):
        AnswerReader(DEFAULT, 1, 5).expect(tokens)


@pytest.mark.parametrize(
    ("parse", "low", "high", "logprobs", "why"),
    [
        ("Score: (", 1, 5, False, "no regular expression"),
        (r"Score: \d", 1, 5, False, "must have one group, around the score, got 0"),
        (r"(Score): (\d)", 1, 5, False, "must have one group, around the score, got 2"),
        ("json:", 1, 5, False, "without the name of the score"),
        ("json:score", 1, 5, True, "logprobs needs parse to be a regular expression"),
        (r"(\d)", 5, 1, False, "score_range must be the lowest and the highest"),
        (r"(\d)", 1, 1, False, "score_range must be the lowest and the highest"),
        (r"(\d)", 1, 10, True, "scores of a single digit"),
        (r"(\d)", 0.5, 5, True, "scores of a single digit"),
    ],
)
def test_mistakes_in_how_answers_are_read_are_found_at_once(
    parse: str, low: float, high: float, logprobs: bool, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        AnswerReader(parse, float(low), float(high)).check(logprobs=logprobs)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_bundled_templates_ask_for_what_the_default_reads(name: str) -> None:
    text = fill(find_template(name), 'a cat {with} "braces"', {})
    assert text.count('a cat {with} "braces"') == 1
    assert text.splitlines()[-1] == "Score: N"
    assert "from 1 to 5" in text
    assert AnswerReader(DEFAULT, 1, 5).read(text.replace("Score: N", "Score: 4")) == 4.0


def test_prompt_and_columns_are_filled_in_once_and_other_braces_stay() -> None:
    text = fill(
        '{prompt}: is {count} {thing}? Answer as {"score": 3}. {}', "a {thing} {prompt}", {"count": 2, "thing": "cat"}
    )
    assert text == 'a {thing} {prompt}: is 2 cat? Answer as {"score": 3}. {}'


def test_a_column_that_the_prompt_has_not_is_an_error() -> None:
    with pytest.raises(RewardError, match=r"the template has \{count\}, but the prompt has only prompt, thing"):
        fill("{prompt} {count}", "x", {"thing": "cat"})


def test_a_word_that_names_no_template_is_an_error() -> None:
    assert find_template("Rate {prompt}") == "Rate {prompt}"
    assert find_template("How good is this?") == "How good is this?"
    with pytest.raises(ConfigError, match="no template 'unifiedreward'; did you mean unified-reward"):
        find_template("unifiedreward")
