"""Whether the machine is large enough: memory of its device against the plan's estimate, and free disk space."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import ModelConfig, RewardConfig
from mixgrpo.cost.memory import Memory, estimate_memory
from mixgrpo.cost.operations import shape_of, training_of
from mixgrpo.data.sets import PromptSets
from mixgrpo.doctor.finding import Finding, size
from mixgrpo.doctor.shortage import remedies
from mixgrpo.errors import MixGRPOError, ModelError
from mixgrpo.models.load import check_quantize
from mixgrpo.shapes import Shape

_HEADROOM = 0.92
"""Share of a device's memory for a run; the rest is for the driver, the allocator's gaps and the estimate's error."""

_NO_DEVICE = "no estimate: there is no such device"
_HALF_BYTES = {"hpsv2": 2.0e9, "pickscore": 2.0e9, "imagereward": 0.9e9}
"""Reward -> bytes of its weights in half precision (docs/cost.md)."""
_WITHOUT_WEIGHTS = ("brightness", "colors", "http", "jpeg", "ocr", "tesseract", "vlm")
"""Rewards that hold nothing on a device that is worth counting: they have no network, a small one, or a server."""
_WHILE_SCORING = ("sampling", "decoding", "encoding")
"""Phases of the estimate that go on while the pictures before are scored."""


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
    try:
        device = device_of(wanted)
    except RuntimeError:
        return Finding("device", "problem", f"model.device {wanted!r} is no torch device", "use auto, cpu or cuda:0")
    if (device.index or 0) >= torch.cuda.device_count():
        words = f"model.device is {wanted!r}, but torch sees {torch.cuda.device_count()} CUDA devices"
        return Finding("device", "problem", words, "the first is cuda:0")
    found = torch.cuda.get_device_properties(device)
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
    """Compare the plan's estimate for one device, and rewards that stand there too, with what it has.

    `available` bytes count instead of this machine's.
    """
    shape = _shape(config)
    if shape is None:
        return Finding("memory", "note", "no estimate: the model's config files are not on this machine, or not known")
    try:
        device = device_of(config.model.device)
    except RuntimeError:
        return Finding("memory", "note", _NO_DEVICE)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return Finding("memory", "note", _NO_DEVICE)
    memory = estimate_memory(config, shape, cuda=device.type == "cuda")
    rewards = weigh_rewards(config.rewards, device)
    need = memory.peak + rewards.counted_in(memory)
    have = available or (
        torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory_of_machine()
    )
    words = f"about {size(need)} needed on {device}, which has {size(have)}"
    if rewards.always or rewards.scoring:
        words += f"; {size(rewards.always + rewards.scoring)} of it at most for the weights of rewards"
    if rewards.unknown:
        words += f"; not counted: reward {', '.join(rewards.unknown)}"
    if need <= _HEADROOM * have:
        return Finding("memory", "ok", words)
    known = remedies(config, rewards=bool(rewards.always))
    return Finding("memory", "problem", words, "; ".join(remedy.flags for remedy in known))


def device_of(setting: str) -> torch.device:
    """Return the device that a setting such as auto means, a GPU with its number; the CPU where there is no GPU."""
    if not torch.cuda.is_available() or setting == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda" if setting == "auto" else setting)
    return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device


@dataclass(frozen=True, slots=True)
class RewardMemory:
    """Bytes of the weights of rewards on a device."""

    always: float
    """Of those that stay there."""
    scoring: float
    """Of those that are there while they score, which is while pictures are drawn."""
    unknown: tuple[str, ...]
    """Names of those that may be there, with a size that is not known."""

    def counted_in(self, memory: Memory) -> float:
        """Return what they add to the peak of a run, whose hungriest phase may be one in which some are not there."""
        scored = max(bytes for phase, bytes in memory.phases.items() if phase in _WHILE_SCORING) + self.scoring
        return self.always + max(0.0, scored - max(memory.phases.values()))


def weigh_rewards(rewards: Iterable[RewardConfig], device: torch.device) -> RewardMemory:
    """Add up the weights of the rewards that are on `device`."""
    always, scoring, unknown = 0.0, 0.0, list[str]()
    for reward in rewards:
        use, options = reward.use or reward.name, reward.options
        if use in _WITHOUT_WEIGHTS or not _is_on(options.get("device", "auto"), device):
            continue
        if use not in _HALF_BYTES:
            unknown.append(reward.name)
            continue
        weights = _HALF_BYTES[use] * (2.0 if options.get("dtype", "float32") == "float32" else 1.0)
        if options.get("offload", False) and device.type != "cpu":
            scoring += weights
        else:
            always += weights
    return RewardMemory(always, scoring, tuple(unknown))


def _is_on(setting: str, device: torch.device) -> bool:
    try:
        return device_of(setting) == device
    except RuntimeError:  # no torch device: that is told when the reward is made
        return False


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


def memory_of_machine() -> int:
    """Return the bytes that this machine has for its CPUs."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
