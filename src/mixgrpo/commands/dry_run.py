"""What `mixgrpo train --dry-run` does and says."""

import json
import shutil
import tempfile
import textwrap
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mixgrpo.commands.common import new_folder, quiet_libraries, shell_line
from mixgrpo.config.schema import Config

if TYPE_CHECKING:
    from mixgrpo.dry.run import DryRun

INTERRUPTED = 130
"""Exit code of a program that SIGINT ended, so that scripts do not go on as if the run were done."""

_OWN_DEVICE = "--model.device"


def run(config: Config, source: str, rest: Sequence[str], *, output: str | None) -> int:
    """Run `config` with stand-ins; `rest` are the settings that the command line gave beside `source`."""
    quiet_libraries()
    from mixgrpo.dry.run import dry_run
    from mixgrpo.train.console import ConsoleSink

    folder = new_folder(output) if output else Path(tempfile.mkdtemp(prefix="mixgrpo-dry-run-"))
    print(f"Dry run of {config.name}: two iterations with small random networks in place of {config.model.path}")
    print(f"  folder   {folder}", flush=True)
    started = time.monotonic()
    device = config.model.device if _gives_device(rest) else "cpu"
    with ExitStack() as undo:
        # so that the same command can be given again; the folder was new or empty
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        done = dry_run(config, folder, device=device, sinks=lambda settings: [ConsoleSink(settings)])
        undo.pop_all()
    if done.outcome.reason == "interrupted":
        print(f"\nInterrupted after {done.outcome.iteration} of {done.config.iterations} iterations.")
        return INTERRUPTED
    print(f"\nThe dry run went through, in {time.monotonic() - started:.0f} s.")
    for label, text in summary(config, done, folder):
        # a path is one word, however long
        print(
            textwrap.fill(text, 120, initial_indent=f"  {label:9}", subsequent_indent=" " * 11, break_long_words=False)
        )
    print(f"Start the run with:\n  {shell_line('train', source, *rest)}")
    return 0


def summary(config: Config, done: "DryRun", folder: Path) -> list[tuple[str, str]]:
    """Return what was checked, swapped and changed, and where it is, as (label, text)."""
    from mixgrpo.dry.settings import changes

    model = (
        f"{config.model.path}: a random {done.pipeline}, {done.config.model.width} x {done.config.model.height} pixels"
    )
    told = ("description", "model.path", "model.height", "model.width", "rewards.", "prompts.")
    altered = [change for change in changes(config, done.config) if not change.name.startswith(told)]
    adapters = "layers that get adapters, " if config.lora.rank else ""
    return [
        (
            "checked",
            f"settings, prompts, {adapters}rewards and their answers: prompts were encoded, pictures drawn and scored, "
            "weights updated, and checkpoints, samples, report and export written",
        ),
        ("swapped", model),
        *(("", f"reward {swap.reward.name}: {swap.said}") for swap in done.swaps),
        ("changed", ", ".join(f"{name} {_word(before)} -> {_word(after)}" for name, before, after in altered)),
        (
            "not",
            "memory, speed, access to the weights, numbers of tokens, learning: see mixgrpo doctor and mixgrpo plan",
        ),
        *(("note", note) for note in done.notes),
        ("report", str(folder / "report.html")),
    ]


def _gives_device(rest: Sequence[str]) -> bool:
    return any(word.partition("=")[0] == _OWN_DEVICE for word in rest)


def _word(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
