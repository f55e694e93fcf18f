"""`mixgrpo presets`: what there is to start from. No torch."""

import tomllib
from collections.abc import Sequence

from rich import box
from rich.table import Table

from mixgrpo.commands.common import Parser, terminal
from mixgrpo.config.load import preset_names, preset_text


def run(args: Sequence[str]) -> int:
    """List the presets, or print the TOML of one."""
    found = make_parser().read(args)
    if found.name is not None:
        print(preset_text(found.name), end="")
        return 0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("preset", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for name in preset_names():
        table.add_row(name, tomllib.loads(preset_text(name))["description"])
    terminal().print(table)
    return 0


def make_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "presets",
        "List the settings that come with the package, or print one of them as TOML: a file to start from.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="a preset to print")
    return parser
