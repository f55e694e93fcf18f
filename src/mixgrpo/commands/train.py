"""`mixgrpo train`: start a run, or go on with one."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixgrpo.commands import dry_run
from mixgrpo.commands.common import Parser, new_folder, quiet_libraries, run_folder, shell_line
from mixgrpo.commands.export import tell_export, tell_loading
from mixgrpo.commands.memory import memory_told
from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.errors import ConfigError

_LOADING = "loading the model"
_NEXT = {"encoding prompts": _LOADING, "sampling": "updating", "updating": "sampling", "saving": "sampling"}
"""Phase of a run -> what it does after that until it tells of another."""
_USAGE = """mixgrpo train PRESET_OR_FILE [--dry-run] [--output DIR] [--section.name VALUE ...]
       mixgrpo train --resume RUN"""
_ABOUT = (
    "Post-train a model with rewards. Settings come from a preset (see mixgrpo presets) or a TOML or JSON "
    "file; flags such as --window.size 2 --optim.lr 3e-5 --rewards.1.weight 2 change them."
)
_OWN = {
    "--output DIR": "the run's folder, new or empty (default: runs/NAME-DATE-TIME)",
    "--dry-run": "run two iterations with small random networks of the same classes, in a temporary folder, to find "
    "mistakes: no GPU, no downloads",
}


def run(args: Sequence[str]) -> int:
    """Start or resume a run."""
    if not args or args[0].startswith("-"):
        found, rest = make_parser().parse_known_args(args)
        if found.resume is None:
            make_parser().read(args)
            raise ConfigError("name a preset or a settings file first: mixgrpo train flux-nano (see mixgrpo presets)")
        dry = ["--dry-run"] if found.dry_run else []
        return _resume(found.resume, [*rest, *dry, *([] if found.output is None else ["--output", found.output])])
    source = args[0]
    found, rest = make_parser(add_help=False).parse_known_args(args[1:])
    if found.resume is not None:
        return _resume(found.resume, [source, *rest, *(["--dry-run"] if found.dry_run else [])])
    prog = f"mixgrpo train {source}"
    config = load_config(source, rest, prog=prog, about=_ABOUT, own=_OWN)
    if found.dry_run:
        return dry_run.run(config, source, rest, output=found.output)
    _check_prompts(config)
    folder = new_folder(found.output or f"runs/{config.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    _announce(config, folder)
    try:
        return _train(config, folder, resume=False)
    finally:
        _remove_if_unused(folder)


def make_parser(*, add_help: bool = True) -> Parser:
    """Return the parser of the command's own arguments, those that are no settings."""
    parser = Parser(
        "train",
        _ABOUT,
        usage=_USAGE,
        add_help=add_help,
        epilog="All settings, with their values in a preset: mixgrpo train PRESET_OR_FILE --help",
    )
    parser.add_argument("--output", metavar="DIR", help=_OWN["--output DIR"])
    parser.add_argument("--dry-run", action="store_true", help=_OWN["--dry-run"])
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run, with the settings it has")
    return parser


def _resume(text: str, others: Sequence[str]) -> int:
    folder = run_folder(text)
    settings = folder / "resolved.json"
    if others:
        raise ConfigError(
            f"--resume goes on with the settings that the run has, so it takes nothing else; got "
            f"{' '.join(others)}. To start a new run from them: {shell_line('train', settings)} --section.name VALUE"
        )
    config = load_config(settings)
    if _has_finished(folder):
        print(f"{folder} has finished.")
        _say_results(folder)
        return 0
    _announce(config, folder)
    return _train(config, folder, resume=True)


def _train(config: Config, folder: Path, *, resume: bool) -> int:
    quiet_libraries()
    from mixgrpo.report.alarms import standing_of
    from mixgrpo.report.read import read_run
    from mixgrpo.train.console import ConsoleSink
    from mixgrpo.train.loop import train

    # a run that was killed while it started has no rows
    has_rows = resume and (folder / "metrics.jsonl").is_file()
    earlier = [standing_of(row) for row in read_run(folder).evals] if has_rows else []
    phase = _Phase()
    with memory_told(lambda: phase.now, lambda: _less_memory(config, folder)):
        outcome = train(config, folder, resume=resume, sinks=[ConsoleSink(config, earlier=earlier), phase])
    if outcome.reason == "interrupted":
        print(f"\nInterrupted after {outcome.iteration} of {config.iterations} iterations; saved. Go on with:")
        print(f"  {shell_line('train', '--resume', folder)}")
        return dry_run.INTERRUPTED
    print(f"\nDone: {outcome.iteration} iterations.")
    _say_results(folder)
    return 0


class _Phase:
    """Remembers what a run is doing; a `MetricSink`."""

    def __init__(self) -> None:
        self.now = _LOADING

    def record(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """Take note of the phase, or of the one that follows without a word when it is over."""
        self.now = _NEXT.get(phase, phase) if done == total or phase == "saving" else phase

    def close(self) -> None:
        """Do nothing."""


def _less_memory(config: Config, folder: Path) -> str:
    """Say what takes less memory, and how a run that has a checkpoint goes on with it."""
    from mixgrpo.doctor.shortage import remedies

    known = remedies(config, rewards=True)
    pointer = folder / "checkpoints" / "last.txt"
    if not pointer.is_file():
        return f"What takes less: {'; '.join(remedy.flags for remedy in known)}. Nothing is saved yet: start anew"
    less = "; ".join(remedy.flags for remedy in known if remedy.keeps_result)
    step = pointer.read_text(encoding="utf-8").strip()
    return (
        f"The checkpoint {step} is whole. To go on from it with less, change settings in {folder / 'resolved.json'} "
        f"({less or 'none is left that would not change the result'}), then: {shell_line('train', '--resume', folder)}"
    )


def _say_results(folder: Path) -> None:
    export = folder / "export"
    print(f"  report   {folder / 'report.html'}")
    print(f"  samples  {folder / 'samples'}, from the same noise before and after")
    tell_export(export)
    tell_loading(export, str(export))


def _announce(config: Config, folder: Path) -> None:
    samples = config.prompts_per_iteration * config.rollout.group_size
    rewards = ", ".join(
        f"{reward.name} ({'held-out pictures only' if reward.evaluation_only else f'weight {reward.weight:g}'})"
        for reward in config.rewards
    )
    weights = f"LoRA of rank {config.lora.rank}" if config.lora.rank else "all weights"
    print(config.description or config.name)
    size = f"{config.model.width} x {config.model.height} pixels"
    print(f"  model    {config.model.path}, {size}; trains {weights}")
    print(f"  rewards  {rewards}")
    print(f"  run      {config.iterations} iterations of {samples} samples: {folder}", flush=True)
    if config.rollout.head_ratio < 1.0:
        print(
            "  note     rollout.head_ratio compresses the steps before the window too. The paper warns of it: on "
            "FLUX.1-dev\n           HPSv2.1 fell from .358 to .335 (arXiv 2507.21802, table 12)",
            flush=True,
        )


def _check_prompts(config: Config) -> None:
    """Read the prompt files before torch is loaded: a wrong path is the likeliest mistake."""
    from mixgrpo.data.sets import load_prompt_sets

    load_prompt_sets(config)


def _has_finished(folder: Path) -> bool:
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        return False
    lines = metrics.read_text(encoding="utf-8").splitlines()
    try:
        last = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:  # cut short when the process died: not finished
        return False
    return last.get("kind") == "end" and last.get("reason") == "finished"


def _remove_if_unused(folder: Path) -> None:
    """Take back a folder in which nothing has happened yet, so that the same command can be given again."""
    if folder.is_dir() and [entry.name for entry in folder.iterdir()] == ["resolved.json"]:
        (folder / "resolved.json").unlink()
        folder.rmdir()
