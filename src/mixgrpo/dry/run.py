"""A dry run: two iterations of a run from end to end, with small random networks of the classes that it would have."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from diffusers.models.attention_dispatch import AttentionBackendName

from mixgrpo.config.messages import did_you_mean
from mixgrpo.config.schema import Config
from mixgrpo.config.sections import ModelConfig
from mixgrpo.data.sets import load_prompt_sets
from mixgrpo.dry.known import find_known
from mixgrpo.dry.models import save_small
from mixgrpo.dry.prompts import prompts_for
from mixgrpo.dry.rewards import Swap, swapping
from mixgrpo.dry.settings import StandIns, dry_config
from mixgrpo.errors import ConfigError
from mixgrpo.models.load import check_frames, check_size, part_configs
from mixgrpo.models.registry import find_model
from mixgrpo.train.loop import Outcome, train
from mixgrpo.train.metrics import MetricSink

FOLDER = "stand-ins"
"""Where, in the folder of a dry run, the small model and the weights of the rewards are."""

_LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}


@dataclass(frozen=True, slots=True)
class DryRun:
    """What was run, and what there is to say about it."""

    outcome: Outcome
    config: Config
    """The settings that were run."""
    pipeline: str
    """Class of the small model."""
    swaps: Sequence[Swap]
    """The rewards."""
    notes: Sequence[str]
    """What the run will need that was not looked at or is not here."""


def dry_run(
    config: Config, folder: Path, *, device: str = "cpu", sinks: Callable[[Config], Sequence[MetricSink]] = lambda _: ()
) -> DryRun:
    """Run two iterations of `config` with stand-ins, all of it in `folder`, which is new or empty.

    `sinks` gets the settings that are run.

    Raises:
        MixGRPOError: what the run would raise, as far as it does not hang on real weights, servers or a GPU.
    """
    stand_ins = folder / FOLDER
    known = find_known(config.model.path, config.model.revision, targets=config.lora.target_modules)
    prompts = prompts_for(config, stand_ins / "prompts")
    load_prompt_sets(config.model_copy(update={"prompts": prompts.settings}))  # with as many prompts as the run takes
    name = Path(config.model.path).name
    small = save_small(known, stand_ins / f"{name}-small-random")
    height, width, num_frames = _check_picture(config.model, small)
    notes = [*prompts.notes, *_machine_notes(config)]
    with swapping(config.rewards, stand_ins / "rewards", device=device) as swaps:
        settings = dry_config(
            config,
            StandIns(
                model=str(small.resolve()),
                height=height,
                width=width,
                num_frames=num_frames,
                device=device,
                rewards=tuple(swap.reward for swap in swaps),
                prompts=prompts.settings,
                prompt_cache=str(stand_ins / "encoded-prompts"),
            ),
        )
        outcome = train(settings, folder, sinks=sinks(settings))
    notes += [note for swap in swaps for note in swap.notes]
    return DryRun(outcome, settings, known.pipeline, swaps, notes)


def _check_picture(model: ModelConfig, small: Path) -> tuple[int, int, int]:
    """Check the size that the run draws, and return the smallest that its family allows: height, width, frames.

    Raises:
        ConfigError: if pictures of that size, or clips of so many frames, cannot be drawn.
    """
    _, adapter = find_model(str(small), "")
    parts = part_configs(small)
    side, frames = adapter.side_multiple(parts), adapter.frame_multiple(parts)
    check_size(model.height, model.width, side)
    check_frames(model.num_frames, frames)
    return side, side, 1 if model.num_frames == 1 else 1 + frames


def _machine_notes(config: Config) -> list[str]:
    """Say what the run needs of its machine that a dry run leaves out.

    Raises:
        ConfigError: if there is no such attention backend.
    """
    model, notes = config.model, list[str]()
    backends = [backend.value for backend in AttentionBackendName]
    if model.attention not in backends:
        hint = did_you_mean(model.attention, backends) or "."
        raise ConfigError(f"model.attention is {model.attention!r}, which diffusers does not have{hint}")
    if model.attention != "native":
        notes.append(f"model.attention {model.attention!r} was left out: its kernels were not tried")
    if model.compile:
        notes.append("model.compile was left out")
    if model.quantize != "off":
        library = _LIBRARIES[model.quantize]
        lacks = f"; it needs the package {library!r}, which is not installed: pip install 'mixgrpo[quantize]'"
        notes.append(f"model.quantize {model.quantize!r} was left out{lacks if find_spec(library) is None else ''}")
    places = {"the run's folder": "runs", "model.prompt_cache": model.prompt_cache}
    notes += [
        f"{what} {place!r} cannot be written to" for what, place in places.items() if place and not _may_write(place)
    ]
    return notes


def _may_write(place: str) -> bool:
    """Return whether a folder can be written to, or made."""
    folder = Path(place).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
