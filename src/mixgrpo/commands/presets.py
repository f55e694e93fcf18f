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
    models = {model: f"{model_words(model)}" for model in model_names()}
    entries = {method.name: f"{method.title}: {method.summary}" for method in methods().values()}
    width = max(len(name) for name in (*models, *entries))
    for title, lines in (("MODELS", models), ("METHODS", entries)):
        console.print(Text(title, style="bold"))
        table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, show_header=False)
        table.add_column(no_wrap=True, min_width=width)
        table.add_column(overflow="fold")
        for name, words in lines.items():
            table.add_row(name, words)
        console.print(table)
        console.print()
    first = next(iter(models))
    console.print(f"A preset is MODEL-METHOD, such as {first}-{list(entries)[-1]}; a model alone is its MixGRPO.")
    console.print(f"All settings of one, with comments: mixgrpo presets {first}")


def make_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "presets",
        "List the settings that come with the package, or print one of them as TOML: a file to start from.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="a preset to print")
    return parser
