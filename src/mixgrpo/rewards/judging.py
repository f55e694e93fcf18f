"""What a judge is asked, and how its answer becomes a score. Pure text: no requests, no images.

An answer that does not say a score in the range that was asked for is a `RewardError`, never a default.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mixgrpo.config.messages import did_you_mean
from mixgrpo.errors import ConfigError, RewardError

SHOWN_ANSWER = 200
"""Characters of an answer that a message shows."""

_JSON = "json:"

_STEPS = """1: it has next to nothing to do with the description, or is too damaged to tell
2: important things are missing or wrong, or there are faults that nobody overlooks
3: the main things are there; details are wrong or missing, or the quality is middling
4: nearly everything is right and well made; what is wrong must be looked for
5: everything that is described is there, nothing contradicts it, and no fault is to be seen"""

TEMPLATES = {
    "default": f"""You judge an image that was made for this description:

{{prompt}}

Look first at whether the image shows what the description says: things, numbers, colours, places, written words. Then
look at how well it is made: anatomy, perspective, sharpness, artefacts. Be strict, and use the whole scale:

{_STEPS}

Answer with this line and nothing else, N being a whole number from 1 to 5:
Score: N""",
    "unified-reward": f"""An image was generated from the caption below. Rate it on a scale from 1 to 5.

Caption: {{prompt}}

Go through it in three parts, each in one or two sentences:
Alignment: which words of the caption the image shows, and which it does not.
Coherence: whether shapes, anatomy and perspective hold together, and whether there are distortions.
Style: how pleasing composition, light and colour are, whatever the caption says.

Weigh the three alike. What the numbers mean:

{_STEPS}

End with one line of this form; a decimal such as 3.5 is allowed:
Score: N""",
}
"""Name -> what the judge is asked, with {prompt} in it. The wording is this project's, not a model's makers'."""


class Candidate(NamedTuple):
    """A token that the judge weighed."""

    text: str
    logprob: float


class Token(NamedTuple):
    """A token of the answer, and those that were weighed in its place, itself among them."""

    text: str
    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class AnswerReader:
    """Finds the score in an answer."""

    parse: str
    low: float
    high: float

    def check(self, *, logprobs: bool) -> None:
        """Make sure that answers can be read this way.

        Raises:
            ConfigError: They cannot.
        """
        if not self.low < self.high or not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ConfigError(
                f"the vlm reward's score_range must be the lowest and the highest score, got [{self.low}, {self.high}]"
            )
        if self.parse.startswith(_JSON):
            if logprobs:
                raise ConfigError(
                    f"the vlm reward's logprobs needs parse to be a regular expression, got {self.parse!r}"
                )
            if self.parse == _JSON:
                raise ConfigError(
                    "the vlm reward's parse is 'json:' without the name of the score in the answer, as in json:score"
                )
            return
        try:
            groups = re.compile(self.parse).groups
        except re.error as error:
            raise ConfigError(f"the vlm reward's parse is no regular expression: {error}, in {self.parse!r}") from error
        if groups != 1:
            raise ConfigError(
                f"the vlm reward's parse must have one group, around the score, got {groups} in {self.parse!r}"
            )
        if logprobs and not (self.low.is_integer() and self.high.is_integer() and 0 <= self.low < self.high <= 9):
            raise ConfigError(
                f"the vlm reward's logprobs needs scores of a single digit, got score_range = "
                f"[{self.low:g}, {self.high:g}]"
            )

    def read(self, answer: str) -> float:
        """Return the score that an answer says.

        Raises:
            RewardError: It says none, or one out of range.
        """
        if self.parse.startswith(_JSON):
            return self._in_range(_from_json(answer, self.parse.removeprefix(_JSON)), answer)
        found = self._find(answer)
        try:
            value = float(found[1])
        except ValueError:
            raise RewardError(f"the score {found[1]!r} is no number{said(answer)}") from None
        return self._in_range(value, answer)

    def expect(self, tokens: Sequence[Token]) -> float:
        """Return the mean of the scores that the judge weighed where it wrote one, by their probabilities.

        Raises:
            RewardError: The answer says no score in range, or its tokens do not.
        """
        answer = "".join(token.text for token in tokens)
        written = self.read(answer)
        if not written.is_integer():
            raise RewardError(f"logprobs needs whole scores, got {written:g}{said(answer)}")
        place, end = self._find(answer).start(1), 0
        for token in tokens:
            end += len(token.text)
            if end > place:
                return self._mean(token, answer)
        raise AssertionError("the match lies inside the answer")

    def _mean(self, token: Token, answer: str) -> float:
        scores = {str(score): score for score in range(int(self.low), int(self.high) + 1)}
        weighed = [
            (scores[candidate.text.strip()], math.exp(candidate.logprob))
            for candidate in token.candidates
            if candidate.text.strip() in scores
        ]
        total = sum(weight for _, weight in weighed)
        if not total > 0:
            raise RewardError(f"no score is among the tokens weighed in place of {token.text!r}{said(answer)}")
        return sum(score * weight for score, weight in weighed) / total

    def _find(self, answer: str) -> re.Match[str]:
        """Find the last place that fits: judges think aloud before they decide."""
        found = list(re.finditer(self.parse, answer))
        if not found or not found[-1][1]:
            raise RewardError(f"there is no score{said(answer)}")
        return found[-1]

    def _in_range(self, value: float, answer: str) -> float:
        if not self.low <= value <= self.high:
            raise RewardError(f"the score {value:g} is not from {self.low:g} to {self.high:g}{said(answer)}")
        return value


def find_template(text: str) -> str:
    """Return the bundled template of that name, or the text itself if it is one.

    Raises:
        ConfigError: It is a single word that names no template.
    """
    if text in TEMPLATES:
        return TEMPLATES[text]
    if len(text.split()) > 1 or "{" in text:
        return text
    hint = did_you_mean(text, TEMPLATES)
    raise ConfigError(
        f"the vlm reward has no template {text!r}{hint or '.'} There are {', '.join(TEMPLATES)}, or give the text"
    )


def fill(template: str, prompt: str, columns: Mapping[str, Any]) -> str:
    """Put the prompt and its columns into a template; braces around anything but one word stay as they are.

    Raises:
        RewardError: The template has a column that the prompt has not.
    """
    words = {"prompt": prompt, **columns}
    names = re.findall(r"\{(\w+)\}", template)
    if missing := [name for name in names if name not in words]:
        raise RewardError(f"the template has {{{missing[0]}}}, but the prompt has only {', '.join(words)}")
    return re.sub(r"\{(\w+)\}", lambda found: str(words[found[1]]), template)


def said(answer: str) -> str:
    """Return the end of a message: the beginning of the answer."""
    return f"; the answer was {answer[:SHOWN_ANSWER]!r}"


def _from_json(answer: str, name: str) -> float:
    """Return the number called `name` of the last JSON object in a text that has one."""
    decoder, place, values = json.JSONDecoder(), answer.find("{"), []
    while place >= 0:
        try:
            found, end = decoder.raw_decode(answer, place)
        except ValueError:
            end = place + 1
        else:
            values += [found[name]] if name in found else []
        place = answer.find("{", end)
    if not values:
        raise RewardError(f"there is no JSON object with {name!r}{said(answer)}")
    if isinstance(values[-1], bool) or not isinstance(values[-1], int | float):
        raise RewardError(f"{name!r} is no number but {values[-1]!r}{said(answer)}")
    return float(values[-1])
