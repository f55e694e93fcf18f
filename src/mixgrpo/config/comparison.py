"""The file `compare.json`: what a comparison compares. It is written before anything runs, and kept to afterwards."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import Field, ValidationError, model_validator

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import Positive, RewardConfig, Section
from mixgrpo.errors import CheckpointError, ConfigError
from mixgrpo.locks import lock_of

FILE = "compare.json"

SHARED = ("model", "prompts", "rewards", "eval", "iterations", "prompts_per_iteration", "rollout.shift")
"""Settings, or sections of them, that must not differ between methods: they decide what is drawn, scored and compared.

The shift is among them because evaluations are drawn with it.
"""

Order = Literal["interleaved", "sequential"]


class Entrant(Section):
    """A method that takes part."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name on the command line and of its folder."""
    title: str
    """Name in tables and charts."""
    summary: str = ""
    """What it does, in a sentence."""
    source: str = ""
    """Where it is published."""


class Session(Section):
    """One call of the command, the first or one that went on."""

    begun: float
    """Unix time."""
    command: str
    """The command line."""
    budget_minutes: float | None = None
    """Wall minutes it was given."""
    ended: float | None = None
    """Unix time; None while it runs, or when it was killed."""
    reason: Literal["", "finished", "budget", "interrupted", "failed"] = ""
    """Why it ended."""


class Terms(Section):
    """What is compared, and how."""

    format: Literal[1] = 1
    """Version of this file."""
    model: str
    """The model that every method trains."""
    methods: tuple[Entrant, ...] = Field(min_length=1)
    """In the order in which they take turns."""
    seeds: Positive
    """Runs of each method, with the seeds 0 to this less 1."""
    order: Order
    """Whether the methods of a seed take turns, an iteration each, or run one after the other."""
    settings: tuple[str, ...] = ()
    """The part of the command line that changed settings of every method."""
    target: str
    """The method whose final reward the others have to reach."""
    judges: tuple[str, ...] = ()
    """Rewards that score held-out pictures only, of every method alike."""
    sessions: tuple[Session, ...] = ()
    """All calls so far."""

    @model_validator(mode="after")
    def _target_takes_part(self) -> Self:
        names = [method.name for method in self.methods]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the method {twice[0]!r} is named twice")
        if self.target not in names:
            raise ValueError(f"the target {self.target!r} is none of the methods: {', '.join(names)}")
        return self


def read_terms(folder: Path) -> Terms:
    """Read the terms of the comparison in `folder`.

    Raises:
        CheckpointError: if there is no comparison there, or its file is damaged.
    """
    path = folder / FILE
    try:
        return Terms.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no comparison: it has no {FILE}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path} is damaged: {where + ': ' if where else ''}{first['msg']}") from None


def write_terms(folder: Path, terms: Terms) -> None:
    """Write the terms into `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{FILE}.part"
    part.write_text(json.dumps(terms.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    part.replace(folder / FILE)


def write_session(folder: Path, session: Session) -> None:
    """Write a call into the terms in `folder`: a new one, or how one that is there already ended.

    The file is read again for it, since other calls may be under way in the same folder.

    Raises:
        CheckpointError: if there is no comparison there, or its file is damaged.
    """
    with lock_of(folder, "terms"):
        terms = read_terms(folder)
        others = [s for s in terms.sessions if (s.begun, s.command) != (session.begun, session.command)]
        sessions = sorted([*others, session], key=lambda one: one.begun)
        write_terms(folder, terms.model_copy(update={"sessions": tuple(sessions)}))


def agree(terms: Terms, wanted: Terms) -> Terms:
    """Return the terms of a comparison that goes on: as it was, or with more methods, more seeds or another target.

    Raises:
        ConfigError: if anything else is wanted, or less than there is.
    """
    for name, old, new in (
        ("model", terms.model, wanted.model),
        ("order", terms.order, wanted.order),
        ("judges", ", ".join(terms.judges) or "none", ", ".join(wanted.judges) or "none"),
    ):
        if old != new:
            raise ConfigError(
                f"the comparison there has the {name} {old}, this call asks for {new}. "
                "Choose a new folder with --output, or ask for the same"
            )
    names = {method.name for method in wanted.methods}
    if missing := [method.name for method in terms.methods if method.name not in names]:
        raise ConfigError(
            f"the comparison there has the method {missing[0]} too. Methods can be added to it, but not be left out: "
            "name it, or choose a new folder with --output"
        )
    if wanted.seeds < terms.seeds:
        raise ConfigError(
            f"the comparison there has {terms.seeds} seeds. Seeds can be added, but not be left out: ask for "
            f"--seeds {terms.seeds} or more, or choose a new folder with --output"
        )
    known = {method.name for method in terms.methods}
    added = tuple(method for method in wanted.methods if method.name not in known)
    return terms.model_copy(
        update={"methods": terms.methods + added, "seeds": wanted.seeds, "target": wanted.target},
    )


def differing(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two configs differ, by dotted name; None where one does not have a setting."""
    left, right = (dict(_leaves(config.model_dump(mode="json"), "")) for config in (one, other))
    names = dict.fromkeys([*left, *right])
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}


def with_judges(config: Config, judges: Sequence[str]) -> Config:
    """Return the config with rewards that score held-out pictures only, and train nothing, put at its end.

    Raises:
        ConfigError: if the config has a reward of that name.
    """
    for judge in judges:
        if judge in (reward.name for reward in config.rewards):
            raise ConfigError(f"--judges {judge}: a reward of that name takes part already, so it is no second opinion")
    added = tuple(RewardConfig(name=judge, weight=0.0, evaluation_only=True) for judge in judges)
    return config.model_copy(update={"rewards": (*config.rewards, *added)})


def check_fair(configs: Mapping[str, Config]) -> None:
    """Check that methods differ in nothing that would make their figures incomparable.

    Raises:
        ConfigError: if they do.
    """
    (first, base), *others = configs.items()
    for method, config in others:
        for name, (left, right) in differing(base, config).items():
            if any(name == shared or name.startswith(f"{shared}.") for shared in SHARED):
                raise ConfigError(
                    f"{first} has {name} = {left}, {method} has {right}: their results could not be compared. "
                    f"Give all methods the same with --{name} VALUE"
                )


def check_unchanged(method: str, old: Config, new: Config) -> None:
    """Check that a comparison goes on with the settings it has.

    Raises:
        ConfigError: if it does not.
    """
    if changes := differing(old, new):
        name, (before, now) = next(iter(changes.items()))
        more = f", and {len(changes) - 1} more" if len(changes) > 1 else ""
        raise ConfigError(
            f"the comparison there has {name} = {before} for {method}, this call asks for {now}{more}. Settings cannot "
            "change on the way: choose a new folder with --output, or go on with --resume"
        )


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    items: Mapping[str, Any] = {}
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value)
    elif isinstance(value, list):
        items = {str(number): item for number, item in enumerate(cast("list[Any]", value))}
    if not items:
        yield path, value
    for key, inner in items.items():
        yield from _leaves(inner, f"{path}.{key}" if path else key)
