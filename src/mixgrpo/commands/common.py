"""What the commands share: an argument parser that speaks like the rest, and small checks. No torch."""

import argparse
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from mixgrpo.config.messages import did_you_mean
from mixgrpo.errors import CheckpointError, ConfigError


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are `ConfigError`s, with the nearest option for an unknown one."""

    def __init__(
        self,
        command: str,
        about: str,
        *,
        usage: str | None = None,
        epilog: str | None = None,
        add_help: bool = True,
    ) -> None:
        """Make a parser of `mixgrpo COMMAND`, without -h if the help is somebody else's."""
        super().__init__(
            prog=f"mixgrpo {command}",
            description=about,
            usage=usage,
            epilog=epilog,
            add_help=add_help,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise the mistake instead of printing the usage."""
        raise ConfigError(f"{message[0].lower()}{message[1:]} (see {self.prog} --help)")

    def read(self, args: Sequence[str]) -> argparse.Namespace:
        """Parse a command line that holds nothing but this parser's arguments."""
        found, unknown = self.parse_known_args(args)
        for word in unknown:
            if not word.startswith("-"):
                raise ConfigError(f"unexpected argument {word!r} (see {self.prog} --help)")
            raise ConfigError(f"unknown option {word}{did_you_mean(word, self.options())} (see {self.prog} --help)")
        return found

    def options(self) -> list[str]:
        """Return the long options there are."""
        return [option for option in self._option_string_actions if option.startswith("--")]


def at_least_one(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def zero_or_more(text: str) -> int:
    """Read a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def seed_number(text: str) -> int:
    """Read a seed: a whole number from 0 to 2^63 - 1."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def above_zero(text: str) -> float:
    """Read a number above 0."""
    value = _number(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def not_negative(text: str) -> float:
    """Read a number of at least 0."""
    value = _number(text)
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def fraction(text: str) -> float:
    """Read a number from 0 to 1."""
    value = _number(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def inside_fraction(text: str) -> float:
    """Read a number above 0 and below 1."""
    value = _number(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and below 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def invocation() -> str:
    """Return how this program is called, so that a command that is printed works when it is pasted."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":
        python = "python" if shutil.which("python") == sys.executable else sys.executable
        return f"{shlex.quote(python)} -m mixgrpo"
    found = shutil.which("mixgrpo")
    if script.name != "mixgrpo" or (found and Path(found).resolve() == script.resolve()):
        return "mixgrpo"
    return shlex.quote(os.path.relpath(script))


def shell_line(*words: object) -> str:
    """Return a command of this program as it is typed in a shell."""
    return " ".join([invocation(), *(shlex.quote(str(word)) for word in words)])


def run_folder(text: str) -> Path:
    """Return the folder of a run.

    Raises:
        CheckpointError: if it is not there, or holds no run.
    """
    run = Path(text).expanduser()
    if not run.is_dir():
        raise CheckpointError(f"there is no run folder {run}")
    if not (run / "resolved.json").is_file():
        raise CheckpointError(f"{run} is no run folder: it has no resolved.json")
    return run


def new_folder(text: str) -> Path:
    """Return a folder that may be written to: one that is empty or not there yet.

    Raises:
        ConfigError: if there is something in the way.
    """
    folder = Path(text).expanduser()
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; --output takes a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"the folder {folder} is not empty; choose a new one with --output")
    return folder


def quiet_libraries() -> None:
    """Keep diffusers and transformers from writing progress bars and advice between our lines.

    Downloads from the hub still show theirs. Call this before anything else imports the two.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def terminal() -> Console:
    """Return the console that results are printed on."""
    return Console(highlight=False, soft_wrap=False)
