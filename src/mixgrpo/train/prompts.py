"""The prompts of a run: read, checked, and encoded ahead where the text encoders are not to stay in memory."""

from collections.abc import Callable, Sequence

from mixgrpo.config.schema import Config
from mixgrpo.data.prompts import load_prompts, prompt_batch
from mixgrpo.errors import ConfigError
from mixgrpo.models import cache_prompts


def run_prompts(config: Config) -> tuple[list[str], list[str]]:
    """Return the training prompts and the held-out ones, after checking that they do not overlap.

    Raises:
        ConfigError: if they do, if there are too few, or a file cannot be read.
    """
    prompts, heldout = load_prompts(config.prompts.train), load_prompts(config.prompts.heldout)
    if len(prompts) < config.prompts_per_iteration:
        raise ConfigError(
            f"prompts.train holds {len(prompts)} prompts, fewer than prompts_per_iteration "
            f"({config.prompts_per_iteration})"
        )
    if both := set(prompts) & set(heldout):
        raise ConfigError(f"prompts.heldout must not be trained on, but prompts.train holds {min(both)!r} too")
    return prompts, heldout[: config.eval.num_prompts or None]


def encode_ahead(
    config: Config, prompts: Sequence[str], heldout: Sequence[str], *, progress: Callable[[str, int, int], None]
) -> None:
    """Fill the prompt cache with all that a run will see; does nothing without one.

    Raises:
        ModelError: if the model cannot be loaded.
    """
    model = config.model
    if not model.prompt_cache:
        return
    per_iteration = config.prompts_per_iteration
    batches = (
        prompt_batch(config.seed, iteration, count=per_iteration, total=len(prompts))
        for iteration in range(config.iterations)
    )
    drawn = sorted({index for batch in batches for index in batch})
    cache_prompts(
        model.path,
        [*(prompts[index] for index in drawn), *heldout, model.negative_prompt],
        folder=model.prompt_cache,
        max_sequence_length=model.max_sequence_length,
        dtype=model.dtype,
        device=model.device,
        revision=model.revision,
        progress=lambda done, total: progress("encoding prompts", done, total),
    )
