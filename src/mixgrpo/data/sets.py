"""The prompts of a run: those that are trained on, those that are held out, and what there is to say about them."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import PromptsConfig
from mixgrpo.data.formats import HUB
from mixgrpo.data.prompts import Prompt, PromptList, read_prompts, too_long
from mixgrpo.errors import ConfigError

_SPLIT = "split:"


class PromptSets(NamedTuple):
    """What a run trains on, and what it is judged by."""

    training: PromptList
    heldout: PromptList
    shared: int = 0
    """Held-out prompts that stood among the training prompts too, and were left out there."""

    def figures(
        self, count_tokens: Callable[[Sequence[str]], Sequence[int]] | None = None, limit: int = 0
    ) -> dict[str, Any]:
        """Return the counts as plain values; with `count_tokens`, also how many prompts take more than `limit`."""
        figures: dict[str, Any] = {"training": self.training.figures(), "heldout": self.heldout.figures()}
        if count_tokens is not None:
            figures["token_limit"] = limit
            for name, found in (("training", self.training), ("heldout", self.heldout)):
                figures[name]["too_long"] = len(too_long(found.prompts, count_tokens, limit))
        return {**figures, "shared": self.shared}


def load_prompt_sets(config: Config) -> PromptSets:
    """Read the prompts of a run, and hold some of them out where `prompts.heldout` says how many.

    What is held out is never trained on, even if it stands in `prompts.train`.

    Raises:
        ConfigError: if a source is not as it must be, or there are too few prompts to train on.
        MissingExtraError: if one is on the hub and the package `datasets` is not installed.
    """
    settings, least = config.prompts, config.prompts_per_iteration
    count = _split_count(settings)
    train = read_prompts(settings.train, column=settings.column)
    shared = 0
    if count is None:
        heldout = read_prompts(settings.heldout, column=settings.column)
        apart = set(heldout.prompts)
        kept = tuple(prompt for prompt in train.prompts if prompt not in apart)
        shared, train = len(train.prompts) - len(kept), replace(train, prompts=kept)
    else:
        if (most := len(train.prompts) - least) < count:
            raise ConfigError(
                f"prompts.heldout is {settings.heldout!r}, but prompts.train holds {len(train.prompts)} prompts, of "
                f"which prompts_per_iteration ({least}) must be left to train on"
                + (f": hold out at most {most}" if most > 0 else "")
            )
        kept, held = split_prompts(train.prompts, count)
        train, heldout = replace(train, prompts=kept), PromptList(settings.heldout, held)
    if len(train.prompts) < least:
        others = f" that are not in prompts.heldout ({shared} are)" if shared else ""
        raise ConfigError(
            f"prompts.train holds {len(train.prompts)} prompts{others}, fewer than prompts_per_iteration ({least})"
        )
    return PromptSets(train, heldout, shared)


def load_heldout(config: Config) -> PromptList:
    """Read the held-out prompts of a run; raises as `load_prompt_sets` does."""
    if _split_count(config.prompts) is None:
        return read_prompts(config.prompts.heldout, column=config.prompts.column)
    return load_prompt_sets(config).heldout


def split_prompts(prompts: Sequence[Prompt], count: int) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Hold out the `count` prompts whose texts have the smallest SHA-256; return (the others in order, those).

    The order of the lines does not matter. When lines are added, some of them may take the place of prompts that were
    held out, but what was trained on is never held out. Held-out prompts come in the order of their hashes, so that the
    first k of them are those that a split of k would hold out.
    """
    held = sorted(prompts, key=_digest)[:count]
    apart = set(held)
    return tuple(prompt for prompt in prompts if prompt not in apart), tuple(held)


def is_on_hub(settings: PromptsConfig) -> bool:
    """Return whether reading the prompts may mean a download."""
    return any(source.startswith(HUB) for source in (settings.train, settings.heldout))


def prompt_lines(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Put the counts of `PromptSets.figures` into words: (label, text) for each line."""
    limit, shared, held = figures.get("token_limit", 0), figures["shared"], figures["heldout"]["prompts"]
    lines = [("prompts", _in_words(figures["training"], limit)), ("held out", _in_words(figures["heldout"], limit))]
    if shared:
        stand = "stands" if shared == 1 else "stand"
        text = f"{shared:,} of the {_count(held, 'held-out prompt')} {stand} in prompts.train too; not trained on"
        lines.append(("note", text))
    return lines


def left_out(figures: Mapping[str, Any]) -> str:
    """Say what `PromptList.figures` says was left out; empty if nothing was."""
    duplicates = _count(figures["duplicates"], "duplicate")
    if figures["conflicts"]:
        duplicates += f" ({figures['conflicts']:,} with other columns than the first, which counts)"
    parts = [f"{figures['empty']:,} empty"] if figures["empty"] else []
    parts += [duplicates] if figures["duplicates"] else []
    return f"left out {', '.join(parts)}" if parts else ""


def cut_in_words(count: int, limit: int) -> str:
    """Say that `count` prompts are too long; empty if none is."""
    are = "is" if count == 1 else "are"
    return f"{count:,} {are} longer than the text encoder's {limit:,} tokens and will be cut" if count else ""


def _in_words(figures: Mapping[str, Any], limit: int) -> str:
    cut = cut_in_words(figures.get("too_long", 0), limit)
    parts = (_count(figures["prompts"], "prompt"), left_out(figures), cut)
    return "; ".join(part for part in parts if part)


def _split_count(settings: PromptsConfig) -> int | None:
    """Return how many of the training prompts are to be held out; None if the held-out ones have a source."""
    if settings.train.startswith(_SPLIT):
        raise ConfigError(f"prompts.train is {settings.train!r}, but only prompts.heldout can be a split")
    if not settings.heldout.startswith(_SPLIT):
        return None
    if re.fullmatch(r"[1-9][0-9]*", text := settings.heldout.removeprefix(_SPLIT)) is None:
        raise ConfigError(
            f"prompts.heldout is {settings.heldout!r}; after 'split:' it takes how many of prompts.train to hold out, "
            "such as split:256"
        )
    return int(text)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
