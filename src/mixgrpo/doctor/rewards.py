"""Whether the rewards can be made, and whether they score."""

import time
from collections.abc import Collection, Sequence

import torch

from mixgrpo.config.schema import Config
from mixgrpo.doctor.finding import Finding
from mixgrpo.doctor.shortage import shortage
from mixgrpo.errors import MixGRPOError
from mixgrpo.rewards import make_reward
from mixgrpo.rewards.scorer import Scorer

_LESS_MEMORY = (
    'in its options: a smaller batch_size, dtype = "float16", offload = true, device = "cpu"; or another process '
    "has the device: see nvidia-smi"
)


def check_rewards(config: Config, prompts: Sequence[str], *, leave_out: Collection[str] = ()) -> list[Finding]:
    """Make every reward and let it score a picture of noise for each of `prompts`, in the size of the run.

    Those to `leave_out`, by name, whose files are not here, are not made: that would download or miss them.
    """
    generator = torch.Generator().manual_seed(0)
    # Quantised, as pictures are.
    noise = torch.randint(0, 256, (len(prompts), 3, config.model.height, config.model.width), generator=generator) / 255
    return [
        Finding(f"reward {reward.name}", "note", "not made, as its files are not here: see above")
        if reward.name in leave_out
        else _check(config, index, noise, prompts)
        for index, reward in enumerate(config.rewards)
    ]


def _check(config: Config, index: int, images: torch.Tensor, prompts: Sequence[str]) -> Finding:
    settings = config.rewards[index]
    about = f"reward {settings.name}"
    started = time.perf_counter()
    try:
        reward = make_reward(settings.use or settings.name, settings.options)
        made = time.perf_counter()
        with Scorer({settings.name: reward}, timeout=settings.timeout) as scorer:
            table = scorer.submit(images, prompts).result()
    except MixGRPOError as error:
        return Finding(about, "problem", str(error))
    except RuntimeError as error:
        said = shortage(error)
        if said is None:
            raise
        return Finding(about, "problem", f"the memory ran out while it was made: {said}", _LESS_MEMORY)
    seconds = time.perf_counter() - made
    if messages := table.failures[settings.name]:
        words = f"made, but {len(messages)} of {len(images)} pictures of noise got no score: {messages[0]}"
        # the scorer's thread hands the error on by its name
        remedy = _LESS_MEMORY if messages[0].startswith(torch.OutOfMemoryError.__name__) else ""
        return Finding(about, "problem", words, remedy)
    scores = ", ".join(f"{score:.3g}" for score in table.values[settings.name].tolist())
    words = f"made in {made - started:.1f} s; {len(images)} pictures of noise in {seconds:.1f} s: {scores}"
    return Finding(about, "ok", words)
