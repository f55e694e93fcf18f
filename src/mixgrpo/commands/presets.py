"""`mixgrpo presets`: what there is to start from. No torch."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from mixgrpo.commands.common import Parser, terminal
from mixgrpo.config.load import preset_text
from mixgrpo.config.presets import methods, model_names, model_words


def run(args: Sequence[str]) -> int:
    """List the presets, or print the TOML of one."""
    found = make_parser().read(args)
    if found.name is not None:
        print(preset_text(found.name), end="")
    else:
        _list()
    return 0


def _list() -> None:
    console = terminal()
    for model in model_names():
        console.print(Text(f"{model}: {model_words(model)}", style="bold"))
        table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for method in methods().values():
            table.add_row(f"{model}-{method.name}", f"{method.title}: {method.summary}")
        console.print(table)
        console.print()
    console.print(
        "A model's name alone is its MixGRPO. mixgrpo presets NAME prints all settings of one, with comments."
    )


def make_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "presets",
        "List the settings that come with the package, or print one of them as TOML: a file to start from.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="a preset to print")
    return parser
