"""What is done with the prompts of a run before its model is loaded: checked, and encoded where that is asked for."""

from collections.abc import Callable, Sequence

from mixgrpo.config.schema import Config
from mixgrpo.data.prompts import negatives, prompt_batch
from mixgrpo.models import cache_prompts, refuse_unread_negatives


def check_negatives(config: Config, prompts: Sequence[str]) -> None:
    """Refuse prompts with a negative prompt that nothing would read.

    Raises:
        ConfigError: if there is one.
        ModelError: if there is no such model, or it is of an unknown family.
    """
    model = config.model
    refuse_unread_negatives(
        model.path,
        negatives(prompts),
        guidance_scale=model.guidance_scale,
        negative_prompt=model.negative_prompt,
        revision=model.revision,
    )


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
