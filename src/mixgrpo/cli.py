"""The command line: finds the command, and turns every error that a user can mend into one message and exit code 2."""

import importlib
import os
import sys
from collections.abc import Sequence

import mixgrpo
from mixgrpo.errors import ConfigError, MixGRPOError

COMMANDS = {
    "train": "post-train a model with rewards, or go on with a run",
    "compare": "train with several methods and see what each takes and brings",
    "plan": "show what a run would do and cost, before anything is loaded",
    "doctor": "check everything that a run needs, before it costs anything",
    "sample": "draw images with a model or the result of a run",
    "edit": "change an image: another prompt, or what a mask leaves free",
    "evaluate": "draw images and score them with rewards",
    "report": "write a run's report.html again",
    "export": "write a run's result for diffusers, and upload it",
    "presets": "list the presets, or print one",
    "serve-reward": "serve rewards over HTTP to runs elsewhere",
}
"""Command -> what it does. Each is a module of `mixgrpo.commands`, with _ for -, and has `run(args) -> exit code`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 broken pipe, 2 a mistake, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except MixGRPOError as error:
        print(f"mixgrpo: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the output has left; Python must not try to flush the rest into nothing at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"mixgrpo: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mixgrpo: interrupted", file=sys.stderr)
        return 130


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if args[0] in ("-V", "--version"):
        print(f"mixgrpo {mixgrpo.__version__}")
        return 0
    command = args[0]
    if command not in COMMANDS:
        from mixgrpo.config.messages import did_you_mean

        kind = "option" if command.startswith("-") else "command"
        hint = did_you_mean(command, COMMANDS)
        raise ConfigError(f"unknown {kind} {command}{hint or '.'} Commands: {', '.join(COMMANDS)}")
    return importlib.import_module(f"mixgrpo.commands.{command.replace('-', '_')}").run(args[1:])


def _help() -> str:
    lines = [
        "usage: mixgrpo COMMAND ...",
        "",
        "Post-train flow-matching image models with rewards: MixGRPO (arXiv 2507.21802) and its family.",
        "",
        "commands:",
        *(f"  {name:12} {summary}" for name, summary in COMMANDS.items()),
        "",
        "  mixgrpo COMMAND --help    the arguments of a command",
        "  mixgrpo --version         the version",
        "",
        "start here: mixgrpo train flux-nano",
    ]
    return "\n".join(lines)
