"""`mixgrpo compare`: train with several methods and see what each takes and brings."""

import shutil
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixgrpo.commands.common import Parser, above_zero, at_least_one, new_folder, quiet_libraries, shell_line
from mixgrpo.config.comparison import (
    FILE,
    Entrant,
    Session,
    Terms,
    agree,
    check_fair,
    check_unchanged,
    read_terms,
    with_judges,
    write_terms,
)
from mixgrpo.config.load import dump_resolved, load_config
from mixgrpo.config.messages import did_you_mean
from mixgrpo.config.presets import methods, model_names
from mixgrpo.config.schema import Config
from mixgrpo.data.sets import load_prompt_sets
from mixgrpo.errors import CheckpointError, ConfigError, MixGRPOError
from mixgrpo.locks import lock_of
from mixgrpo.report.alarms import standing_of, watch_of_config
from mixgrpo.report.compare_results import make_results
from mixgrpo.report.compare_words import verdicts
from mixgrpo.report.comparison import read_comparison
from mixgrpo.rewards import REWARDS
from mixgrpo.train.compare_console import CompareConsole, Runner

_USAGE = """mixgrpo compare MODEL --methods A B ... [--seeds N] [--budget-minutes M] [--section.name VALUE ...]
       mixgrpo compare --resume DIR [--budget-minutes M] [--methods C ...] [--seeds N]"""
_ABOUT = (
    "Train a model with several methods on the same prompts, noises and evaluations, and write tables and a page. "
    "Settings such as --iterations 30 --eval.every 5 hold for every method."
)
_TARGET = "dancegrpo"
"""Method whose final reward the others have to reach, if it takes part and nothing else is asked for."""
_SEEDS = 3
_DEFAULTS = {"--eval.training_sampler": "true", "--checkpoint.keep": "1"}
"""Settings of a comparison that presets have otherwise: the gap between samplers is measured, and space is saved."""
_INTERRUPTED = 130


def run(args: Sequence[str]) -> int:
    """Start a comparison, or go on with one."""
    command = shell_line("compare", *args)
    if not args or args[0].startswith("-"):
        found, rest = make_parser().parse_known_args(args)
        if found.resume is None:
            make_parser().read(args)
            raise ConfigError(
                "name a model first: mixgrpo compare flux-nano --methods dancegrpo mixgrpo "
                f"(models: {', '.join(model_names())})"
            )
        return _resume(found, rest, command)
    found, settings = make_parser().parse_known_args(args[1:])
    if found.resume is not None:
        raise ConfigError(f"--resume goes on with the model that the comparison has; leave out {args[0]}")
    return _start(args[0], found, settings, command)


def make_parser() -> Parser:
    """Return the parser of the command's own arguments, those that are no settings."""
    parser = Parser(
        "compare",
        _ABOUT,
        usage=_USAGE,
        epilog=f"Methods: {', '.join(methods())}. All settings of one: mixgrpo train MODEL-METHOD --help",
    )
    parser.add_argument("--methods", metavar="METHOD", nargs="+", help="what to compare; with --resume, what to add")
    parser.add_argument("--seeds", metavar="N", type=at_least_one, help=f"runs of each method (default: {_SEEDS})")
    parser.add_argument("--budget-minutes", metavar="M", type=above_zero, help="stop in time, ready to go on later")
    parser.add_argument(
        "--order",
        choices=("interleaved", "sequential"),
        help="methods take turns, all in memory (default), or one run follows the other",
    )
    parser.add_argument(
        "--target",
        metavar="METHOD",
        help=f"whose final reward the others have to reach (default: {_TARGET}, or the first method)",
    )
    parser.add_argument(
        "--judges",
        metavar="REWARD",
        nargs="+",
        help="rewards that score held-out pictures only, such as tesseract: a second opinion that no training saw",
    )
    parser.add_argument("--output", metavar="DIR", help="folder, new, empty or of the same comparison")
    parser.add_argument("--resume", metavar="DIR", help="go on with a comparison, as it is or with more in it")
    return parser


def _start(model: str, found: Namespace, settings: Sequence[str], command: str) -> int:
    if model not in model_names():
        hint = did_you_mean(model, model_names()) or "."
        raise ConfigError(f"no model is called {model!r}{hint} Models: {', '.join(model_names())}")
    if not found.methods:
        raise ConfigError(f"say what to compare: --methods and two or more of {', '.join(methods())}")
    _check_settings(settings)
    names = _known(found.methods)
    folder = Path(found.output or f"runs/compare-{model}-{time.strftime('%Y%m%d-%H%M%S')}").expanduser()
    old = read_terms(folder) if (folder / FILE).is_file() else None
    target = found.target or (old.target if old else _TARGET if _TARGET in names else names[0])
    wanted = Terms(
        model=model,
        methods=_entrants(names),
        seeds=found.seeds or (old.seeds if old else _SEEDS),
        order=found.order or (old.order if old else "interleaved"),
        settings=tuple(settings),
        target=_among(target, names),
        judges=_judges(found.judges) if found.judges else old.judges if old else (),
    )
    configs = _configs(wanted)
    if old is None:
        return _run(new_folder(str(folder)), wanted, configs, found=found, command=command)
    terms = agree(old, wanted)
    for method in old.methods:
        check_unchanged(method.name, load_config(_settings_file(folder, method.name)), configs[method.name])
    return _run(folder, terms, {m.name: configs[m.name] for m in terms.methods}, found=found, command=command)


def _resume(found: Namespace, settings: Sequence[str], command: str) -> int:
    folder = Path(found.resume).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
    old = read_terms(folder)
    others = " ".join(settings) or (found.output and f"--output {found.output}") or (found.judges and "--judges")
    if others:
        raise ConfigError(
            "--resume goes on with the settings that the comparison has, so it takes only --methods, --seeds, --target "
            f"and --budget-minutes; got {others}"
        )
    known = [method.name for method in old.methods]
    added = [name for name in _known(found.methods or []) if name not in known]
    wanted = old.model_copy(
        update={
            "methods": (*old.methods, *_entrants(added)),
            "seeds": found.seeds or old.seeds,
            "order": found.order or old.order,
            "target": _among(found.target or old.target, [*known, *added]),
        }
    )
    terms = agree(old, wanted)
    configs = {name: load_config(_settings_file(folder, name)) for name in known}
    configs |= _configs(terms.model_copy(update={"methods": _entrants(added)}), beside=configs) if added else {}
    return _run(folder, terms, configs, found=found, command=command)


def _known(names: Sequence[str]) -> list[str]:
    """Return the methods in the order given, each once.

    Raises:
        ConfigError: if there is no such method.
    """
    for name in names:
        if name not in methods():
            hint = did_you_mean(name, methods()) or "."
            raise ConfigError(f"no method is called {name!r}{hint} Methods: {', '.join(methods())}")
    return list(dict.fromkeys(names))


def _judges(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in REWARDS:
            hint = did_you_mean(name, REWARDS) or "."
            raise ConfigError(f"--judges: there is no reward {name!r}{hint} Built in are: {', '.join(sorted(REWARDS))}")
    return tuple(dict.fromkeys(names))


def _among(target: str, names: Sequence[str]) -> str:
    if target not in names:
        raise ConfigError(f"--target {target} does not take part; it has to be one of: {', '.join(names)}")
    return target


def _entrants(names: Sequence[str]) -> tuple[Entrant, ...]:
    known = methods()
    return tuple(
        Entrant(name=name, title=known[name].title, summary=known[name].summary, source=known[name].source)
        for name in names
    )


def _check_settings(settings: Sequence[str]) -> None:
    for word in settings:
        name = word.partition("=")[0]
        if name == "--seed":
            raise ConfigError("the seeds of a comparison are 0, 1, ...; say how many with --seeds N")
        if name in ("--name", "--description"):
            raise ConfigError(f"{name} is each run's own and cannot be given to all; leave it out")


def _configs(terms: Terms, *, beside: Mapping[str, Config] | None = None) -> dict[str, Config]:
    """Return the settings of every method, after checking that they can be compared, with those `beside` them too."""
    given = {word.partition("=")[0].replace("-", "_") for word in terms.settings if word.startswith("--")}
    defaults = [
        word for name, value in _DEFAULTS.items() if name.replace("-", "_") not in given for word in (name, value)
    ]
    configs: dict[str, Config] = {}
    for method in terms.methods:
        preset = f"{terms.model}-{method.name}"
        try:
            config = load_config(preset, [*defaults, *terms.settings], prog=f"mixgrpo train {preset}")
        except ConfigError as error:
            told = str(error)
            raise ConfigError(told if told.startswith(preset) else f"{preset}: {told}") from None
        configs[method.name] = with_judges(config, terms.judges)
    check_fair({**(beside or {}), **configs})
    load_prompt_sets(next(iter(configs.values())))
    return configs


def _settings_file(folder: Path, method: str) -> Path:
    return folder / method / "settings.json"


def _run(folder: Path, terms: Terms, configs: Mapping[str, Config], *, found: Namespace, command: str) -> int:
    session = Session(begun=time.time(), command=command, budget_minutes=found.budget_minutes)
    is_new = not (folder / FILE).is_file()
    with lock_of(folder, "terms"):
        sessions = () if is_new else read_terms(folder).sessions
        write_terms(folder, terms.model_copy(update={"sessions": sessions}))
    for name, config in configs.items():
        file = _settings_file(folder, name)
        if not file.is_file():
            file.parent.mkdir(exist_ok=True)
            dump_resolved(config, file)
    runners = _runners(folder, configs, terms)
    _announce(folder, terms, runners)
    quiet_libraries()
    from mixgrpo.train.compare import compare

    budget = None if found.budget_minutes is None else 60.0 * found.budget_minutes
    try:
        reason = compare(folder, terms, configs, session=session, watcher=CompareConsole(runners, budget=budget))
    except MixGRPOError:
        if is_new and not any(folder.glob("*/seed-*/checkpoints")):  # so that the same command can be given again
            shutil.rmtree(folder)
        raise
    return _say_end(folder, reason)


def _runners(folder: Path, configs: Mapping[str, Config], terms: Terms) -> dict[str, Runner]:
    """Return how far every method is."""
    courses = {(course.method, course.seed): course for course in read_comparison(folder).courses}
    return {
        method.name: Runner(
            method.title,
            iterations=configs[method.name].iterations,
            every=configs[method.name].eval.every,
            done={
                seed: courses[method.name, seed].done if (method.name, seed) in courses else 0
                for seed in range(terms.seeds)
            },
            ended={
                seed for (name, seed), course in courses.items() if name == method.name and course.state != "running"
            },
            watch=watch_of_config(configs[method.name]),
            earlier={
                seed: [standing_of(row) for row in course.run.evals]
                for (name, seed), course in courses.items()
                if name == method.name
            },
        )
        for method in terms.methods
    }


def _announce(folder: Path, terms: Terms, runners: Mapping[str, Runner]) -> None:
    runs = len(runners) * terms.seeds
    ended = sum(len(runner.ended) for runner in runners.values())
    titles = {method.name: method.title for method in terms.methods}
    print(f"Comparing {', '.join(titles.values())} on {terms.model}")
    print(f"  runs     {ended} of {runs} at their end; {terms.seeds} seeds, {terms.order}")
    print(f"  target   the final reward of {titles[terms.target]}")
    print(f"  folder   {folder}", flush=True)


def _say_end(folder: Path, reason: str) -> int:
    results = make_results(read_comparison(folder))
    print()
    for note in verdicts(results):
        print(f"{note.title}: {note.text}")
    print(f"  page     {folder / 'index.html'}")
    print(f"  tables   {folder / 'table.md'}")
    if reason == "finished":
        if not results.is_complete:
            print("The other runs are under way in another process, which brings the page up to date.")
        return 0
    print("Interrupted; saved. Go on with:" if reason == "interrupted" else "The time is over; saved. Go on with:")
    print(f"  {shell_line('compare', '--resume', folder)}")
    return _INTERRUPTED if reason == "interrupted" else 0
