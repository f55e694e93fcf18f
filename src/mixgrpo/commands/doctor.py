"""`mixgrpo doctor`: checks what a run needs, so that it does not fail after an hour of loading on rented GPUs."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from mixgrpo.commands.common import Parser, quiet_libraries, shell_line, terminal
from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.errors import ConfigError, MixGRPOError

if TYPE_CHECKING:
    from mixgrpo.doctor.finding import Finding

_USAGE = "mixgrpo doctor PRESET_OR_FILE [--quick] [--section.name VALUE ...]"
_ABOUT = (
    "Check settings, prompts, access to the model and to the files of rewards, disk, memory, rewards and their "
    "servers, and that our loop draws what diffusers draws with the model."
)
_OWN = {"--quick": "leave out what loads the model"}
_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
_PROBLEMS = 1


def run(args: Sequence[str]) -> int:
    """Print one line for each check; exit code 1 if a run would fail."""
    if not args or args[0].startswith("-"):
        make_parser().read(args)
        raise ConfigError("name a preset or a settings file first: mixgrpo doctor flux-nano (see mixgrpo presets)")
    source = args[0]
    found, rest = make_parser(add_help=False).parse_known_args(args[1:])
    config = load_config(source, rest, prog=f"mixgrpo doctor {source}", about=_ABOUT, own=_OWN)
    quiet_libraries()
    console = terminal()
    problems = 0
    for finding in examine(config, quick=found.quick):
        problems += finding.state == "problem"
        row = Table.grid(padding=(0, 1))
        row.add_column(width=7)
        said = Text(f"{finding.about}: {finding.text}")
        if finding.remedy:
            said.append(f"\n{finding.remedy}", style="dim")
        row.add_row(Text(finding.state, style=_STYLES[finding.state]), said)
        console.print(row)
    if problems:
        console.print(f"\n{problems} problem{'s' if problems > 1 else ''}: the run would fail.")
        return _PROBLEMS
    console.print(f"\nReady: {shell_line('train', source, *rest)}")
    return 0


def make_parser(*, add_help: bool = True) -> Parser:
    """Return the parser of the command's own arguments, those that are no settings."""
    parser = Parser("doctor", _ABOUT, usage=_USAGE, add_help=add_help)
    parser.add_argument("--quick", action="store_true", help=_OWN["--quick"])
    return parser


def examine(config: Config, *, quick: bool) -> "Iterator[Finding]":
    """Yield the outcome of one check after the other, cheap ones first."""
    from pathlib import Path

    from mixgrpo.data.sets import load_prompt_sets, prompt_lines
    from mixgrpo.doctor.access import check_model, check_reward_files, hub_cache
    from mixgrpo.doctor.finding import Finding
    from mixgrpo.doctor.machine import check_device, check_disk, check_memory, check_quantization
    from mixgrpo.doctor.rewards import check_rewards
    from mixgrpo.doctor.sampling import check_sampling

    yield Finding("settings", "ok", f"{config.name} is valid")
    try:
        sets = load_prompt_sets(config)
        for label, text in prompt_lines(sets.figures()):
            yield Finding(label, "note" if label == "note" else "ok", text)
    except MixGRPOError as error:
        sets = None
        yield Finding("prompts", "problem", str(error))
    yield check_device(config)
    yield from check_quantization(config.model)
    access, download = check_model(config.model)
    yield access
    files = check_reward_files(config)
    for checked in files.values():
        yield from checked.findings
    yield check_memory(config)
    everything = download + sum(checked.download for checked in files.values())
    yield from check_disk(config, sets, download=everything, downloads=hub_cache(), run=Path("runs"))
    prompts: Sequence[str] = sets.heldout.prompts[:2] if sets else ("a picture",)
    yield from check_rewards(config, prompts, leave_out=[name for name in files if not files[name].are_here])
    if not quick and access.state == "ok" and not download:
        yield check_sampling(config, prompts[0])
