"""Encodes the prompts of a run ahead, where the text encoders are not to stay in memory."""

from collections.abc import Callable, Sequence

from mixgrpo.config.schema import Config
from mixgrpo.data.prompts import negatives, prompt_batch
from mixgrpo.models import cache_prompts


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
    seen = [*(prompts[index] for index in drawn), *heldout]
    cache_prompts(
        model.path,
        [*seen, *filter(None, negatives(seen)), model.negative_prompt],
        folder=model.prompt_cache,
        max_sequence_length=model.max_sequence_length,
        dtype=model.dtype,
        device=model.device,
        revision=model.revision,
        progress=lambda done, total: progress("encoding prompts", done, total),
    )
