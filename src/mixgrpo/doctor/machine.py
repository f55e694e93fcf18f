"""Whether the machine is large enough: memory of its device against the plan's estimate, and free disk space."""

import os
import shutil
from pathlib import Path

import torch

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import ModelConfig
from mixgrpo.cost.memory import estimate_memory
from mixgrpo.cost.operations import shape_of, training_of
from mixgrpo.data.sets import PromptSets
from mixgrpo.doctor.finding import Finding, size
from mixgrpo.doctor.shortage import remedies
from mixgrpo.errors import MixGRPOError, ModelError
from mixgrpo.models.load import check_quantize
from mixgrpo.shapes import Shape

_HEADROOM = 0.92
"""Share of a device's memory for a run; the rest is for the driver, the allocator's gaps and the estimate's error."""


def check_device(config: Config) -> Finding:
    """Say what torch computes on."""
    wanted = config.model.device
    cuda = torch.cuda.is_available()
    if wanted.startswith("cuda") and not cuda:
        return Finding(
            "device", "problem", f"model.device is {wanted!r}, but torch sees no CUDA device", "use auto or cpu"
        )
    if not cuda or wanted == "cpu":
        words = f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
        large = config.model.path != "flux-nano"
        return Finding("device", "note" if large else "ok", words + (": right for small models only" if large else ""))
    index = torch.device(wanted if wanted != "auto" else "cuda").index or 0
    found = torch.cuda.get_device_properties(index)
    return Finding("device", "ok", f"{found.name}, {size(found.total_memory)}, torch {torch.__version__}")


def check_quantization(model: ModelConfig) -> list[Finding]:
    """Say whether weights can be quantised as the settings want it, if they do."""
    if model.quantize == "off":
        return []
    try:
        check_quantize(model.quantize)
    except MixGRPOError as error:
        return [Finding("quantize", "problem", str(error))]
    return [Finding("quantize", "ok", f"{model.quantize} can be used here")]


def check_memory(config: Config, *, available: int | None = None) -> Finding:
    """Compare the plan's estimate for one device with what it has; `available` bytes instead of this machine's."""
    shape = _shape(config)
    if shape is None:
        return Finding("memory", "note", "no estimate: the model's config files are not on this machine, or not known")
    on_gpu = torch.cuda.is_available() and config.model.device != "cpu"
    need = estimate_memory(config, shape, cuda=on_gpu).peak
    have = available or (torch.cuda.get_device_properties(0).total_memory if on_gpu else _ram())
    words = f"about {size(need)} needed on one device, which has {size(have)}"
    if need <= _HEADROOM * have:
        return Finding("memory", "ok", words)
    return Finding("memory", "problem", words, "; ".join(remedy.flags for remedy in remedies(config)))


def check_disk(config: Config, sets: PromptSets | None, *, download: int, downloads: Path, run: Path) -> list[Finding]:
    """Compare the space that the run will take with what is free, for each place."""
    needs: dict[str, tuple[Path, float]] = {}
    if download:
        needs["download"] = (downloads, download)
    shape = _shape(config)
    if shape is not None:
        trained = shape.trained_parameters(training_of(config.model, config.lora, shape))
        kept = config.checkpoint.keep + 1  # and the best
        needs["checkpoints"] = (run, kept * trained * 12.0)
        if config.model.prompt_cache and sets is not None:
            seen = min(len(sets.training.prompts), config.iterations * config.prompts_per_iteration)
            width = 2 if config.model.dtype == "bfloat16" else 4
            numbers = shape.conditioning_numbers * (seen + len(sets.heldout.prompts))
            needs["prompt cache"] = (Path(config.model.prompt_cache).expanduser(), float(numbers * width))
    return [_compare(name, path, need) for name, (path, need) in needs.items()]


def _compare(name: str, path: Path, need: float) -> Finding:
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    words = f"{name}: up to {size(need)} in {path}, where {size(free)} are free"
    return Finding(
        "disk", "ok" if need < free else "problem", words, "" if need < free else "free some, or choose another place"
    )


def _shape(config: Config) -> Shape | None:
    try:
        return shape_of(config.model)
    except ModelError:
        return None


def _ram() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
