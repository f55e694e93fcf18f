"""Whether anything reads a negative prompt, found out before text encoders and weights are loaded."""

from collections.abc import Sequence

from mixgrpo.models.registry import MODELS, find_adapter, find_index


def refuse_unread_negatives(
    path_or_hub_id: str,
    negatives: Sequence[str],
    *,
    guidance_scale: float,
    negative_prompt: str = "",
    revision: str = "",
) -> None:
    """Refuse negative prompts that a model would not read; reads no more than its `model_index.json`.

    Args:
        path_or_hub_id: the model, as `load_model` takes it.
        negatives: those of prompts; empty where a prompt has none of its own.
        guidance_scale: as `load_model` takes it.
        negative_prompt: the model's own.
        revision: of a model on the hub.

    Raises:
        ConfigError: if there is a negative prompt, but no guidance that reads it.
        ModelError: if there is no such model, or it is of an unknown family.
    """
    if not (negative_prompt or any(negatives)):
        return
    index = find_index(path_or_hub_id, revision)
    if not find_adapter(index, path_or_hub_id).guides(guidance_scale, index):
        from mixgrpo.models.options import refuse_negatives  # noqa: PLC0415 - loads torch

        family = MODELS[index["_class_name"]].name
        refuse_negatives(family, guidance_scale, negative_prompt=negative_prompt, negatives=negatives)
