"""Fixtures: a FluxPipeline with random weights, small enough that an iteration takes a fraction of a second."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from diffusers import FluxTransformer2DModel

from mixgrpo.config.schema import Config
from mixgrpo.models import FlowModel, load_model
from mixgrpo.nano.folder import make_pipeline
from mixgrpo.nano.text import CLIP_WIDTH, T5_WIDTH, PromptEncoder
from mixgrpo.nano.vae import LATENT_CHANNELS, make_vae

HEIGHT, WIDTH = 16, 32
PROMPTS = [f"a picture number {number}" for number in range(6)]
HELDOUT = [f"a held-out picture number {number}" for number in range(4)]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    encoder = PromptEncoder()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    with torch.no_grad():  # diffusers starts the last layers at zero, where nothing could be told apart
        for parameter in transformer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    pipeline = make_pipeline(
        transformer=transformer,
        vae=make_vae(),
        clip=encoder.clip,
        t5=encoder.t5,
        clip_tokenizer=encoder.clip_tokenizer,
        t5_tokenizer=encoder.t5_tokenizer,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tiny_folder: Path) -> FlowModel:
    return load_model(str(tiny_folder), height=HEIGHT, width=WIDTH, max_sequence_length=32)


@pytest.fixture
def make_config(tiny_folder: Path, tmp_path: Path) -> Callable[..., Config]:
    """Return a function that makes the config of a short run; keywords replace keys of sections, None removes one."""
    train, heldout = tmp_path / "train.txt", tmp_path / "heldout.txt"
    train.write_text("\n".join(PROMPTS), encoding="utf-8")
    heldout.write_text("\n".join(HELDOUT), encoding="utf-8")

    def make(
        *, iterations: int = 4, rewards: list[dict[str, object]] | None = None, **sections: dict[str, object]
    ) -> Config:
        settings: dict[str, object] = {
            "name": "tiny",
            "iterations": iterations,
            "prompts_per_iteration": 2,
            "model": {"path": str(tiny_folder), "height": HEIGHT, "width": WIDTH, "max_sequence_length": 32},
            "prompts": {"train": str(train), "heldout": str(heldout)},
            "rollout": {"num_steps": 5, "group_size": 4, "micro_batch": 8},
            "window": {"type": "sliding", "size": 2, "interval": 1},
            "rewards": rewards or [{"name": "brightness"}, {"name": "jpeg", "weight": 0.5}],
            "loss": {"type": "grpo", "micro_batch": 8, "clip_range": 1e-3},
            "optim": {"lr": 1e-3},
            "eval": {"every": 2, "num_steps": 4, "samples": 2},
            "checkpoint": {"every": 1},
        }
        for section, values in sections.items():
            merged = {**cast("dict[str, object]", settings.get(section, {})), **values}
            settings[section] = {key: value for key, value in merged.items() if value is not None}
        return Config.model_validate(settings)

    return make
