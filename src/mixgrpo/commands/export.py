"""`mixgrpo export`: the result of a run as a folder that diffusers loads."""

from collections.abc import Sequence
from pathlib import Path

from mixgrpo.commands.common import Parser, quiet_libraries, run_folder


def run(args: Sequence[str]) -> int:
    """Write the model of a run and say how it is loaded."""
    found = make_parser().read(args)
    folder, output = run_folder(found.run), Path(found.output).expanduser()
    quiet_libraries()
    from mixgrpo.train.export import export_run

    written = export_run(folder, output, which=found.which)
    print(f"{written}\nload it with: diffusers.DiffusionPipeline.from_pretrained({str(written)!r})")
    return 0


def make_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "export",
        "Write the model of a run as a diffusers folder; adapters are merged, and written beside it too.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write; an earlier export is replaced")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="checkpoint to take (default: best)")
    return parser
