"""What `sample`, `evaluate` and `edit` share: which model is meant, and how it draws."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mixgrpo.commands.common import Parser, above_zero, at_least_one, fraction, quiet_libraries, seed_number
from mixgrpo.config.load import load_config
from mixgrpo.config.presets import model_names
from mixgrpo.config.schema import Config
from mixgrpo.config.sections import ModelConfig
from mixgrpo.errors import ConfigError
from mixgrpo.flow.plan import ode_plan
from mixgrpo.report.exported import read_exported

if TYPE_CHECKING:
    from torch import Tensor

    from mixgrpo.data.prompts import PromptList
    from mixgrpo.models import FlowModel


_MODEL_ARGUMENTS = ("height", "width", "num_frames", "device", "guidance_scale", "max_sequence_length")
"""Arguments that stand for the settings of a model with the same names."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model as the command line names it."""

    name: str
    run: Path | None
    """The run whose result is meant, if a run folder was given."""
    known: Config | None
    """Settings that say how this model is used: those of its run, or of a preset for it."""
    adapter_of: str = ""
    """The model that `name`, a folder with an adapter alone, goes on top of; empty: `name` is a model."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How images are drawn: the model and the solver's settings, complete."""

    source: Source
    model: ModelConfig
    num_steps: int
    shift: float
    seed: int
    batch: int
    base: str | None
    tuned_fraction: float
    which: Literal["best", "last"]


def add_drawing_arguments(parser: Parser) -> None:
    """Add the arguments that say which model draws, in which batches, and which other model takes part."""
    add_model_arguments(parser)
    parser.add_argument("--batch", metavar="N", type=at_least_one, help="images or clips per model call")
    parser.add_argument(
        "--tuned-fraction",
        metavar="F",
        type=fraction,
        default=1.0,
        help="share of the steps that the model takes, the base model the rest (default: 1, paper: 0.8)",
    )
    parser.add_argument("--base", metavar="MODEL", help="the base model (default: the one that the run started from)")


def add_model_arguments(parser: Parser) -> None:
    """Add the arguments that say which model is meant, and the solver's settings."""
    parser.add_argument("model", metavar="MODEL_OR_RUN", help="run folder, diffusers folder, hub id, or flux-nano")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="checkpoint of a run (default: best)")
    parser.add_argument("--steps", metavar="N", type=at_least_one, help="denoising steps")
    parser.add_argument("--shift", metavar="K", type=above_zero, help="time shift of the noise schedule")
    parser.add_argument("--seed", metavar="N", type=seed_number, help="seed of the noise")
    parser.add_argument("--height", metavar="PIXELS", type=at_least_one, help="image height")
    parser.add_argument("--width", metavar="PIXELS", type=at_least_one, help="image width")
    parser.add_argument("--num-frames", metavar="N", type=at_least_one, help="frames of a clip (default: 1, an image)")
    parser.add_argument("--guidance-scale", metavar="G", type=float, help="guidance, as diffusers names it")
    parser.add_argument(
        "--max-sequence-length", metavar="N", type=at_least_one, help="longest prompt, in tokens of the text encoder"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    # What `add_drawing_arguments` offers, for a command that has no use for it.
    parser.set_defaults(batch=None, tuned_fraction=1.0, base=None)


def add_prompts_arguments(parser: Parser) -> None:
    """Add the arguments that name a source of prompts."""
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="a .txt, .json, .jsonl or .csv file of prompts, hub:owner/name[:split], hub:owner/name/FILE, or a list "
        "that comes with the package",
    )
    parser.add_argument("--column", metavar="NAME", help="the column of FILE that holds the prompt (default: prompt)")


def check_column(found: argparse.Namespace) -> None:
    """Check that a column is named for a source only.

    Raises:
        ConfigError: if no source is given that could have it.
    """
    if found.column is not None and found.prompts is None:
        raise ConfigError("--column has nothing to do: it belongs to --prompts FILE")


def read_drawing(found: argparse.Namespace, *, seed: int | None) -> Drawing:
    """Complete the arguments from what is known about the model; without `seed`, evaluations' is the default.

    Raises:
        ConfigError: if something is neither given nor known.
    """
    source = find_source(found.model)
    known = source.known
    base = found.base or (known.model.path if known and source.run else None)
    if found.tuned_fraction < 1.0 and base is None:
        raise ConfigError("--tuned-fraction below 1 needs --base MODEL, which takes the rest of the steps")
    if found.base and found.tuned_fraction == 1.0:
        raise ConfigError("--base has nothing to do: give it a share of the steps with --tuned-fraction 0.8")
    if known is None and (found.height is None or found.width is None or found.steps is None):
        raise ConfigError(f"nothing is known about the model {source.name}: give --height, --width and --steps")
    path = source.adapter_of or (source.name if source.run is None or known is None else known.model.path)
    model = known.model if known else ModelConfig(path=path, height=found.height, width=found.width)
    changes = {name: vars(found)[name] for name in _MODEL_ARGUMENTS} | {"path": path}
    return Drawing(
        source=source,
        model=model.model_copy(update={name: value for name, value in changes.items() if value is not None}),
        num_steps=found.steps or (known.eval.num_steps if known else 0),
        shift=found.shift or (known.rollout.shift if known else 3.0),
        seed=found.seed if found.seed is not None else seed if seed is not None else known.eval.seed if known else 0,
        batch=found.batch or (known.rollout.micro_batch if known else 1),
        base=base if found.tuned_fraction < 1.0 else None,
        tuned_fraction=found.tuned_fraction,
        which=found.which,
    )


def find_source(name: str) -> Source:
    """Find out what a model's name means: a run, a run's export, or a model that a preset is made for."""
    folder = Path(name).expanduser()
    if (folder / "resolved.json").is_file():
        return Source(name, folder, load_config(folder / "resolved.json"))
    exported = read_exported(folder)
    if exported is not None and exported.is_adapter:
        of_run = folder.parent / "resolved.json"
        known = load_config(of_run) if of_run.is_file() else _preset_for(exported.base)
        return Source(name, None, known, adapter_of=exported.base)
    if (folder.parent / "resolved.json").is_file() and (folder / "model_index.json").is_file():
        return Source(name, None, load_config(folder.parent / "resolved.json"))
    return Source(name, None, _preset_for(name))


def _preset_for(model: str) -> Config | None:
    presets = (load_config(preset) for preset in model_names())
    return next((preset for preset in presets if preset.model.path == model), None)


def tell_left_out(prompts: "PromptList") -> None:
    """Say on stderr what of a source was left out, if anything was."""
    from mixgrpo.data.sets import left_out

    if words := left_out(prompts.figures()):
        print(f"{prompts.source}: {words}", file=sys.stderr)


def tell_cut(model: "FlowModel", prompts: Sequence[str], limit: int) -> None:
    """Say on stderr how many prompts have more tokens than the text encoder takes, if any has."""
    from mixgrpo.data.prompts import too_long
    from mixgrpo.data.sets import cut_in_words

    if words := cut_in_words(len(too_long(prompts, model.count_tokens, limit)), limit):
        print(f"of {len(prompts):,} prompts, {words}", file=sys.stderr)


def draw(drawing: Drawing, prompts: Sequence[str]) -> "Iterator[tuple[range, Tensor]]":
    """Load the models and return what draws one image or clip per prompt, batch by batch: (indices, images)."""
    models = load_models(drawing)
    tell_cut(models[0], prompts, drawing.model.max_sequence_length)
    return draw_with(models, drawing, prompts)


def draw_with(
    models: "tuple[FlowModel, FlowModel | None]", drawing: Drawing, prompts: Sequence[str], *, stream: int = 0
) -> "Iterator[tuple[range, Tensor]]":
    """Return what draws one image or clip per prompt with loaded `models`, batch by batch: (indices, images)."""
    from mixgrpo.train.inference import draw_batches

    model, base = models
    return draw_batches(
        model,
        prompts,
        plan=ode_plan(drawing.num_steps, drawing.shift),
        seed=drawing.seed,
        batch=drawing.batch,
        stream=stream,
        base=base,
        tuned_fraction=drawing.tuned_fraction,
    )


def load_models(drawing: Drawing) -> "tuple[FlowModel, FlowModel | None]":
    """Load the model that draws, and the base model if it takes part."""
    quiet_libraries()
    import torch

    from mixgrpo.models import load_model
    from mixgrpo.train.export import load_run_model

    if drawing.model.threads:
        torch.set_num_threads(drawing.model.threads)
    options = drawing.model.arguments(drawing=True)
    base = None if drawing.base is None else load_model(drawing.base, **options)
    run, known = drawing.source.run, drawing.source.known
    if run is None or known is None:
        model = load_model(drawing.model.path, **options)
        if drawing.source.adapter_of:
            model.load_lora(Path(drawing.source.name).expanduser())
        return model, base
    return load_run_model(run, drawing.which, config=known.model_copy(update={"model": drawing.model})), base


@contextmanager
def drawing_progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress on stderr if that is a terminal; yields what is told how many images are drawn."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("drawing", total=total)
        yield lambda done: progress.update(task, completed=done)
