"""`mixgrpo report`: the page of a run or of a comparison, written again from its folder. No torch."""

from collections.abc import Sequence
from pathlib import Path

from mixgrpo.commands.common import Parser, run_folder
from mixgrpo.config.comparison import FILE
from mixgrpo.errors import ConfigError


def run(args: Sequence[str]) -> int:
    """Write the report and say where it is."""
    found = make_parser().read(args)
    from mixgrpo.report import write_comparison, write_report

    if (Path(found.run).expanduser() / FILE).is_file():
        if found.output:
            raise ConfigError(
                f"{found.run} is a comparison, whose results are always written into it; leave out --output"
            )
        print(write_comparison(Path(found.run).expanduser()))
        return 0
    folder = run_folder(found.run)
    print(write_report(folder, Path(found.output).expanduser() if found.output else None))
    return 0


def make_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser("report", "Write the report of a run or a comparison: one HTML file that needs nothing else.")
    parser.add_argument("run", metavar="RUN", help="folder of the run, or of a comparison")
    parser.add_argument("--output", metavar="FILE", help="file to write (default: RUN/report.html)")
    return parser
