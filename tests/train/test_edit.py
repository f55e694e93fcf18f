"""Editing pictures with an adapter: pixels to latents and back, masks, and what comes out untouched."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from mixgrpo.flow.edit import Method
from mixgrpo.models import FlowModel, load_model
from mixgrpo.models.flux import FluxModel
from mixgrpo.nano.vae import reconstruct
from mixgrpo.train.edit import edit_images, num_calls

PROMPTS = ["a picture", "another picture"]
TARGETS = ["something else", "nothing at all"]
OPTIONS: dict[str, Any] = {"strength": 0.8, "num_steps": 3, "shift": 3.0, "seed": 4}

every_method = pytest.mark.parametrize("method", get_args(Method))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 16, 32)


def _unpack(packed: Tensor, model: FlowModel) -> Tensor:
    """Return [B, channels, h, w] of the VAE's grid."""
    return FluxPipeline._unpack_latents(packed.float(), 16, 32, _flux(model).vae.factor)


def _flux(model: FlowModel) -> FluxModel:
    assert isinstance(model, FluxModel)
    return model


@pytest.fixture
def scaled(tiny_model: FlowModel) -> FlowModel:
    """The tiny model with a scale and a shift of its latents that are not 1 and 0."""
    _flux(tiny_model).pipeline.vae.register_to_config(scaling_factor=0.4, shift_factor=0.15)
    return tiny_model


def test_encoding_an_image_gives_the_scaled_mode_of_the_vae_packed(scaled: FlowModel, images: Tensor) -> None:
    packed = scaled.encode_image(images)
    assert packed.shape == (2, *scaled.latent_shape)
    assert torch.equal(packed, scaled.encode_image(images))
    mode = _flux(scaled).pipeline.vae.encode(images * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(_unpack(packed, scaled) / 0.4 + 0.15, mode, rtol=0, atol=1e-6)


def test_decoding_an_encoded_image_is_what_the_vae_makes_of_it(scaled: FlowModel, images: Tensor) -> None:
    expected = reconstruct(_flux(scaled).pipeline.vae, images)
    torch.testing.assert_close(scaled.decode(scaled.encode_image(images)), expected, rtol=0, atol=1e-5)


def test_an_image_of_another_size_is_refused(tiny_model: FlowModel) -> None:
    with pytest.raises(ValueError, match=r"\[batch, 3, 16, 32\], got \(1, 3, 32, 16\)"):
        tiny_model.encode_image(torch.zeros(1, 3, 32, 16))


@pytest.mark.parametrize(("row", "column"), [(0, 0), (7, 21), (15, 31)])
def test_a_marked_pixel_marks_its_cell_in_all_channels(row: int, column: int, tiny_model: FlowModel) -> None:
    masks = torch.zeros(2, 1, 16, 32, dtype=torch.bool)
    masks[1, 0, row, column] = True
    packed = tiny_model.encode_mask(masks)
    assert packed.dtype == torch.bool
    assert packed.shape == (2, *tiny_model.latent_shape)
    expected = torch.zeros(2, tiny_model.latent_shape[1] // 4, 4, 8)
    expected[1, :, row // 4, column // 4] = 1.0
    assert torch.equal(_unpack(packed, tiny_model), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_unedited_image_comes_back_exactly_under_cycle_sde(dtype: str, tiny_folder: Path, images: Tensor) -> None:
    model = load_model(str(tiny_folder), height=16, width=32, max_sequence_length=32, dtype=dtype)
    assert torch.equal(edit_images(model, images, PROMPTS, targets=PROMPTS, method="cycle-sde", **OPTIONS), images)
    assert (model.decode(model.encode_image(images)) - images).abs().mean() > 0.01  # the VAE alone would not do that


@every_method
def test_pixels_outside_the_mask_come_back_exactly(method: Method, tiny_model: FlowModel, images: Tensor) -> None:
    masks = torch.zeros(2, 1, 16, 32, dtype=torch.bool)
    masks[..., 5:11, 13:] = True
    edited = edit_images(tiny_model, images, PROMPTS, targets=TARGETS, masks=masks, method=method, **OPTIONS)
    inside = masks.expand_as(images)
    assert torch.equal(edited[~inside], images[~inside])
    assert (edited != images)[inside].float().mean() > 0.95
    assert edited.isfinite().all()
    assert 0.0 <= edited.min() <= edited.max() <= 1.0


@every_method
def test_an_edit_counts_its_calls_and_depends_on_seed_prompt_and_strength(
    method: Method, tiny_model: FlowModel, images: Tensor
) -> None:
    calls: list[float] = []
    options = {**OPTIONS, "method": method, "targets": TARGETS}
    edited = edit_images(tiny_model, images, PROMPTS, **options, on_call=lambda: calls.append(1))
    assert len(calls) == num_calls(method, 3)
    assert torch.equal(edit_images(tiny_model, images, PROMPTS, **options), edited)
    alone = edit_images(tiny_model, images[:1], PROMPTS[:1], **{**options, "targets": TARGETS[:1]})
    torch.testing.assert_close(alone, edited[:1], rtol=0, atol=1e-4)
    for change in ({"strength": 0.5}, {"targets": PROMPTS}, {"num_steps": 5}):
        assert not torch.allclose(edit_images(tiny_model, images, PROMPTS, **{**options, **change}), edited, atol=1e-4)
    reseeded = edit_images(tiny_model, images, PROMPTS, **{**options, "seed": 5})
    assert torch.allclose(reseeded, edited, atol=1e-4) == (method == "ode")


def test_the_noise_of_the_two_ways_is_not_the_same(tiny_model: FlowModel, images: Tensor, monkeypatch) -> None:
    drawn: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        "mixgrpo.flow.noise.Noise.step",
        lambda self, prompt, sample, step: drawn.append((prompt, sample, step)) or torch.zeros(self.latent_shape),
    )
    edit_images(tiny_model, images, PROMPTS, targets=TARGETS, method="sde", **OPTIONS)
    assert len(drawn) == len(set(drawn)) == 2 * (3 + 2)  # the last step down, to sigma 0, draws none
