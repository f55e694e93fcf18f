"""Adapters over diffusers pipelines. A family is found by the class that `model_index.json` names."""

from mixgrpo.models.base import Conditioning, FlowModel
from mixgrpo.models.guidance import refuse_unread_negatives
from mixgrpo.models.load import cache_prompts, load_model
from mixgrpo.models.registry import MODELS, Family
from mixgrpo.shapes.files import BUNDLED, bundled_folder

__all__ = [
    "BUNDLED",
    "MODELS",
    "Conditioning",
    "Family",
    "FlowModel",
    "bundled_folder",
    "cache_prompts",
    "load_model",
    "refuse_unread_negatives",
]
