"""`mixgrpo export`: the result of a run as a folder that diffusers loads, and as a model on the hub."""

from collections.abc import Sequence
from pathlib import Path

from mixgrpo.commands.common import Parser, quiet_libraries, run_folder
from mixgrpo.commands.hub import check_hub, push
from mixgrpo.errors import ConfigError
from mixgrpo.report.exported import loading_code, read_exported


def run(args: Sequence[str]) -> int:
    """Write the result of a run, upload it if asked to, and say how it is loaded."""
    found = make_parser().read(args)
    if found.private and found.push is None:
        raise ConfigError("--private has nothing to do: it belongs to --push OWNER/NAME")
    folder = run_folder(found.run)
    output = folder / "export" if found.output is None else Path(found.output).expanduser()
    if found.push is not None:
        check_hub(found.push)
    quiet_libraries()
    from mixgrpo.train.export import export_run

    written = export_run(folder, output, which=found.which, merge=found.merge, hub_id=found.push or "")
    where = str(written)
    tell_export(written)
    if found.push is not None:
        print(f"uploading to {found.push} ...", flush=True)
        print(push(written, found.push, private=found.private))
        where = found.push
    tell_loading(written, where)
    return 0


def tell_export(folder: Path) -> None:
    """Print what an export is and where, and what it lacks."""
    exported = read_exported(folder)
    if exported is None:
        return
    what = f"adapter for {exported.base}" if exported.is_adapter else "whole pipeline"
    print(f"  model    {folder} ({what}; README.md is its card)")
    if exported.has_comfyui:
        place = folder if exported.is_adapter else folder / "lora"
        print(f"  ComfyUI  {place / 'comfyui_lora.safetensors'}")
    if exported.no_comfyui:
        print(f"  ComfyUI  no file for it was written: {exported.no_comfyui}")


def tell_loading(folder: Path, where: str) -> None:
    """Print the Python that loads the export in `folder`, which is to be called `where`."""
    exported = read_exported(folder)
    if exported is not None:
        print("\nDraw with it in Python:\n")
        print("\n".join(f"    {line}".rstrip() for line in loading_code(exported, where)))


def make_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "export",
        "Write the result of a run for diffusers: a pipeline or, of a run with LoRA, the adapter alone; with a model "
        "card. Upload it if asked to.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--output", metavar="DIR", help="folder to write; an earlier export is replaced (default: RUN/export)"
    )
    parser.add_argument("--which", choices=("best", "last"), default="best", help="checkpoint to take (default: best)")
    parser.add_argument("--merge", action="store_true", help="merge an adapter into a whole pipeline")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the export to the Hugging Face hub as this model")
    parser.add_argument("--private", action="store_true", help="the model on the hub is private")
    return parser
