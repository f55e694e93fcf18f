"""The model that comes with the package: it loads, and it is what the docs say."""

from importlib import resources
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from mixgrpo.nano import render
from mixgrpo.nano.data import draw_pictures, make_caption, make_pictures, make_rng
from mixgrpo.nano.folder import sample
from mixgrpo.nano.judge import judge
from mixgrpo.nano.prompts import heldout_prompts
from mixgrpo.nano.vae import reconstruct

FOLDER = Path(str(resources.files("mixgrpo") / "assets" / "flux-nano"))


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    pipeline = FluxPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_shipped_weights_are_safetensors_of_at_most_30_megabytes():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 30e6
    assert len([file for file in files if file.suffix == ".safetensors"]) == 4
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt"}


def test_shipped_model_draws_the_asked_ground(pipeline):
    images = sample(pipeline, ['the word "RIVER" in red on white'] * 2, num_inference_steps=4, seed=0)
    assert images.isfinite().all()
    assert images[:, :, 0].mean() > 0.8


@pytest.mark.slow
@pytest.mark.skipif(not all(map(render.is_installed, render.FACES)), reason="the extra 'nano' is not installed")
def test_reconstructions_of_clean_renders_read_as_the_renders_do(pipeline):
    rng = make_rng(1, "probe", 0)
    pictures = make_pictures(rng, 256)
    prompts = [make_caption(picture, rng) for picture in pictures]
    with torch.no_grad():
        judged = judge(reconstruct(pipeline.vae, draw_pictures(pictures)), prompts)
    assert judged["exact"] >= 0.95
    assert judged["colors_exact"] >= 0.99


@pytest.mark.slow
def test_shipped_model_is_decent_but_imperfect(pipeline):
    prompts = heldout_prompts()
    judged = judge(sample(pipeline, prompts, num_inference_steps=10, seed=0), prompts)
    assert 0.30 <= judged["exact"] <= 0.65
    assert judged["colors_exact"] >= 0.85
