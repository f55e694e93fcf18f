"""Prompts with their columns, and which of them an iteration gets as a pure function of (seed, iteration)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from mixgrpo.data.formats import NEGATIVE, bundled_prompts, read_rows
from mixgrpo.errors import ConfigError
from mixgrpo.flow.keyed import keyed_generator

__all__ = [
    "Prompt",
    "PromptList",
    "bundled_prompts",
    "load_prompts",
    "negatives",
    "prompt_batch",
    "read_prompts",
    "too_long",
]

_PROMPT_ORDER = 0x70726F6D  # keeps the order's stream apart from every stream of sampling noise


class Prompt(str):
    """A prompt: its text, equal to and hashed as that text, and what else its line said.

    Rewards get these objects, in training and in evaluations, so a reward may read `prompt.columns["answer"]`.
    """

    __slots__ = ("_columns",)

    def __new__(cls, text: str, columns: Mapping[str, Any] | None = None) -> Self:
        """Make a prompt of a text and its columns, which are copied."""
        prompt = super().__new__(cls, text)
        prompt._columns = MappingProxyType(dict(columns or {}))
        return prompt

    @property
    def columns(self) -> Mapping[str, Any]:
        """The other columns of the prompt's line, read-only; none for a text file."""
        return self._columns

    @property
    def negative(self) -> str:
        """What guidance leads this prompt away from; empty where its line does not say."""
        text = self._columns.get(NEGATIVE) or ""
        return text if text.strip() else ""

    def __reduce__(self) -> tuple[type[Self], tuple[str, dict[str, Any]]]:
        """Pickle and copy with the columns; a read-only mapping itself cannot be pickled."""
        return type(self), (str(self), dict(self._columns))


@dataclass(frozen=True, slots=True)
class PromptList:
    """The prompts of a source in its order, and how many of its lines were left out."""

    source: str
    prompts: tuple[Prompt, ...]
    empty: int = 0
    """Lines without a text."""
    duplicates: int = 0
    """Lines whose text an earlier line has; the first one counts."""
    conflicts: int = 0
    """Those of the duplicates whose columns differ from the first one's."""

    def figures(self) -> dict[str, Any]:
        """Return the source and the counts as plain values."""
        return {
            "source": self.source,
            "prompts": len(self.prompts),
            "empty": self.empty,
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
        }


def read_prompts(source: str, *, column: str = "prompt") -> PromptList:
    """Read a bundled list (by its name), a .txt, .json, .jsonl or .csv file, or something on the hub (docs/data.md).

    In a text file a line is a prompt, unless it is blank or starts with #. Everywhere else the prompt is what stands in
    `column`, to the letter, and the other columns go with it.

    Raises:
        ConfigError: if the source cannot be read, a line is not as it must be, or there is no prompt.
        MissingExtraError: if it is on the hub and the package `datasets` is not installed.
    """
    kept: dict[str, Prompt] = {}
    empty = duplicates = conflicts = 0
    for row in read_rows(source, column):
        if not row.text.strip():
            empty += 1
        elif row.text in kept:
            duplicates += 1
            conflicts += kept[row.text].columns != row.columns
        else:
            kept[row.text] = Prompt(row.text, row.columns)
    if not kept:
        raise ConfigError(f"prompt file {source!r} holds no prompt")
    return PromptList(source, tuple(kept.values()), empty=empty, duplicates=duplicates, conflicts=conflicts)


def load_prompts(source: str, *, column: str = "prompt") -> list[Prompt]:
    """Return the prompts of a source, as `read_prompts` reads it, without the counts."""
    return list(read_prompts(source, column=column).prompts)


def negatives(prompts: Sequence[str]) -> list[str]:
    """Return the negative prompt of each prompt, as `FlowModel.encode` takes them; a plain text has none."""
    return [prompt.negative if isinstance(prompt, Prompt) else "" for prompt in prompts]


def too_long(prompts: Sequence[str], count_tokens: Callable[[Sequence[str]], Sequence[int]], limit: int) -> list[str]:
    """Return the prompts that take more than `limit` tokens, which the text encoder will cut."""
    return [prompt for prompt, tokens in zip(prompts, count_tokens(prompts), strict=True) if tokens > limit]


def prompt_batch(seed: int, iteration: int, *, count: int, total: int) -> list[int]:
    """Return the `count` prompts, as indices below `total`, that `iteration` trains on.

    Prompts are drawn without replacement until all were seen, then in a new order.
    """
    first = iteration * count
    orders: dict[int, list[int]] = {}
    batch = []
    for position in range(first, first + count):
        epoch, place = divmod(position, total)
        if epoch not in orders:
            orders[epoch] = keyed_generator(seed, _PROMPT_ORDER, epoch).permutation(total).tolist()
        batch.append(orders[epoch][place])
    return batch
