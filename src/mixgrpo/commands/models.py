"""What `sample`, `evaluate` and `edit` share: which model is meant, and how it draws."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mixgrpo.commands.common import (
    Parser,
    above_zero,
    at_least_one,
    fraction,
    not_negative,
    quiet_libraries,
    seed_number,
)
from mixgrpo.commands.memory import memory_told
from mixgrpo.commands.sources import Source, find_source
from mixgrpo.config.sections import ModelConfig
from mixgrpo.errors import ConfigError
from mixgrpo.flow.plan import ode_plan

if TYPE_CHECKING:
    from torch import Tensor

    from mixgrpo.data.prompts import PromptList
    from mixgrpo.models import FlowModel


_MODEL_ARGUMENTS = (
    "height",
    "width",
    "num_frames",
    "device",
    "dtype",
    "quantize",
    "offload",
    "guidance_scale",
    "guidance_scale_2",
    "negative_prompt",
    "max_sequence_length",
)
"""Arguments that stand for the settings of a model with the same names."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How images are drawn: the model and the solver's settings, complete."""

    source: Source
    model: ModelConfig
    is_dtype_open: bool
    """Whether nothing says what type the weights are loaded in, so that it is the one that they are stored in."""
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
    parser.add_argument("--guidance-scale", metavar="G", type=not_negative, help="guidance, as diffusers names it")
    parser.add_argument(
        "--guidance-scale-2",
        metavar="G",
        type=not_negative,
        help="guidance of the second of two transformers (Wan 2.2 A14B); 0: as --guidance-scale",
    )
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what classifier-free guidance leads away from")
    parser.add_argument(
        "--max-sequence-length", metavar="N", type=at_least_one, help="longest prompt, in tokens of the text encoder"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="type of the weights (default: as the run, the export or the preset says, else as they are stored)",
    )
    parser.add_argument(
        "--quantize", choices=("off", "int8", "nf4"), help="keep the transformer's weights in 8 or 4 bits: less memory"
    )
    parser.add_argument(
        "--offload",
        action="store_const",
        const=True,
        help="let VAE and text encoders wait on the CPU while they are not used: less memory",
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
    known, model = source.known, source.model()
    base = found.base or (known.model.path if known and source.run else None)
    if found.tuned_fraction < 1.0 and base is None:
        raise ConfigError("--tuned-fraction below 1 needs --base MODEL, which takes the rest of the steps")
    if found.base and found.tuned_fraction == 1.0:
        raise ConfigError("--base has nothing to do: give it a share of the steps with --tuned-fraction 0.8")
    num_steps = found.steps or source.num_steps
    if num_steps is None or (model is None and (found.height is None or found.width is None)):
        raise ConfigError(f"nothing is known about the model {source.name}: give --height, --width and --steps")
    start = model or ModelConfig(path=source.path, height=found.height, width=found.width)
    changes = {name: vars(found)[name] for name in _MODEL_ARGUMENTS} | {"path": source.path}
    return Drawing(
        source=source,
        model=start.model_copy(update={name: value for name, value in changes.items() if value is not None}),
        is_dtype_open=model is None and found.dtype is None,
        num_steps=num_steps,
        shift=found.shift or (known.rollout.shift if known else 3.0),
        seed=found.seed if found.seed is not None else seed if seed is not None else known.eval.seed if known else 0,
        batch=found.batch or (known.rollout.micro_batch if known else 1),
        base=base if found.tuned_fraction < 1.0 else None,
        tuned_fraction=found.tuned_fraction,
        which=found.which,
    )


def settle_dtype(drawing: Drawing) -> Drawing:
    """Let the type of the weights be the one that they are stored in, if nothing says another, and tell which it is.

    A model on the hub is downloaded for that.

    Raises:
        ModelError: if there is no such model, or its files cannot be read.
    """
    if not drawing.is_dtype_open:
        if drawing.source.exported is not None:
            print(f"{drawing.source.name}: weights in {drawing.model.dtype}", file=sys.stderr)
        return drawing
    quiet_libraries()
    from mixgrpo.commands.stored import stored_dtype
    from mixgrpo.models.registry import find_model

    folder, _ = find_model(drawing.model.path, drawing.model.revision)
    dtype, stored = stored_dtype(folder)
    print(f"{drawing.source.name}: weights in {dtype}, stored as {stored} (see --dtype)", file=sys.stderr)
    return replace(drawing, model=drawing.model.model_copy(update={"dtype": dtype}), is_dtype_open=False)


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

    if drawing.model.threads:
        torch.set_num_threads(drawing.model.threads)
    with drawing_memory(drawing, "loading the model"):
        return _load_model(drawing), _load_base(drawing)


def _load_model(drawing: Drawing) -> "FlowModel":
    from mixgrpo.models import load_model
    from mixgrpo.train.export import load_run_model

    source = drawing.source
    if source.run is not None and source.known is not None:
        config = source.known.model_copy(update={"model": drawing.model})
        return load_run_model(source.run, drawing.which, config=config)
    model = load_model(drawing.model.path, **drawing.model.arguments(drawing=True))
    if source.is_adapter:
        model.load_lora(Path(source.name).expanduser())
    return model


def _load_base(drawing: Drawing) -> "FlowModel | None":
    from mixgrpo.models import load_model

    return None if drawing.base is None else load_model(drawing.base, **drawing.model.arguments(drawing=True))


def drawing_memory(drawing: Drawing, doing: str) -> AbstractContextManager[None]:
    """Tell, should the memory run out meanwhile, what was being done and what takes less."""
    return memory_told(lambda: doing, lambda: _less_memory(drawing))


def _less_memory(drawing: Drawing) -> str:
    model = drawing.model
    known = (
        ("--batch 1", drawing.batch > 1),
        ("--dtype bfloat16", model.dtype == "float32"),
        ("--offload", not model.offload),
        ("--quantize int8", model.quantize == "off"),
        ("a smaller --height and --width", True),
        ("fewer --num-frames", model.num_frames > 1),
        ("--device cpu", model.device != "cpu"),
    )
    return f"What takes less: {', '.join(flag for flag, helps in known if helps)}"


@contextmanager
def drawing_progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress on stderr if that is a terminal; yields what is told how many images are drawn."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("drawing", total=total)
        yield lambda done: progress.update(task, completed=done)
