"""A device whose memory runs out: how torch says so, and which settings take less."""

from typing import NamedTuple

import torch

from mixgrpo.config.schema import Config

_ON_CPU = "can't allocate memory"
"""Torch has a class of error for a GPU that is full, but for a CPU only these words."""


class Remedy(NamedTuple):
    """A change of the settings that takes less memory."""

    flags: str
    """What to add to the command line, or to change in a file."""
    keeps_result: bool
    """Whether a run computes the same with it, up to rounding, so that one that has begun can go on."""
    helps_drawing: bool
    """Whether drawing a single picture takes less, too."""


def shortage(error: RuntimeError) -> str | None:
    """Return in one line what torch says of memory that ran out; None if the error is another one."""
    said = " ".join(str(error).split())
    if not isinstance(error, torch.OutOfMemoryError) and _ON_CPU not in said:
        return None
    words = said.partition(" Process ")[0].partition(" Including ")[0].partition(" Of the allocated ")[0]
    return words or "out of memory"


def remedies(config: Config, *, rewards: bool = False) -> list[Remedy]:
    """Return what would help a run, the mildest first; `rewards`: whether some of them stand on its device."""
    model, loss, rollout = config.model, config.loss, config.rollout
    may_rest = rewards and not all(reward.options.get("offload", False) for reward in config.rewards)
    known = (
        (
            Remedy("--loss.micro-batch 1 --rollout.micro-batch 1", True, False),
            max(loss.micro_batch, rollout.micro_batch) > 1,
        ),
        (Remedy("--model.gradient-checkpointing true", True, False), not model.gradient_checkpointing),
        (Remedy("--model.offload true", True, True), not model.offload),
        (Remedy("--model.prompt-cache DIR", True, False), not model.prompt_cache),
        (Remedy("--model.vae-decoding sliced", True, False), model.vae_decoding == "whole"),
        (Remedy("offload = true in the options of rewards", True, False), may_rest),
        (Remedy("train adapters: --lora.rank 32", False, False), config.lora.rank == 0),
        (Remedy("--model.quantize int8", False, True), config.lora.rank > 0 and model.quantize == "off"),
        (Remedy("a smaller --model.height and --model.width", False, True), True),
        (Remedy("fewer --model.num-frames", False, True), model.num_frames > 1),
    )
    return [remedy for remedy, helps in known if helps]
