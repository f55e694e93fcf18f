"""`mixgrpo report`: the page of a run, written again from its folder. No torch."""

from collections.abc import Sequence
from pathlib import Path

from mixgrpo.commands.common import Parser, run_folder


def run(args: Sequence[str]) -> int:
    """Write the report of a run and say where it is."""
    found = make_parser().read(args)
    folder = run_folder(found.run)
    from mixgrpo.report import write_report

    print(write_report(folder, Path(found.output).expanduser() if found.output else None))
    return 0


def make_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser("report", "Write the report of a run: one HTML file that needs nothing else.")
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--output", metavar="FILE", help="file to write (default: RUN/report.html)")
    return parser
