"""What only families that draw clips have to do: frames, two transformers, and the schedules of their pipelines."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from torch import Tensor

from mixgrpo.config.sections import LoraConfig
from mixgrpo.dry.clips import SHIFT
from mixgrpo.errors import ConfigError, ModelError
from mixgrpo.models.stages import TwoStageTransformer
from mixgrpo.train.policy import Policy
from tests.models.families import save
from tests.models.test_parity import LENGTH, PROMPTS, draw, draw_with_diffusers, load

CLIPS = ["wan2.1", "wan2.2-a14b", "wan2.2-ti2v-5b", "hunyuanvideo"]
BOUNDARY = 0.8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("clips")

    def find(name: str) -> Path:
        return root / name if (root / name).exists() else save(name, root / name)

    return find


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("frames", [1, 9])
def test_clips_of_other_lengths_are_those_of_the_pipeline(
    folder: Callable[[str], Path], name: str, frames: int
) -> None:
    model = load(name, folder(name), (32, 32), num_frames=frames)
    drawn = draw(model, PROMPTS[:1], 3)
    assert drawn.shape == ((1, 3, 32, 32) if frames == 1 else (1, frames, 3, 32, 32))
    pipeline = DiffusionPipeline.from_pretrained(folder(name))
    expected = draw_with_diffusers(name, pipeline, model, PROMPTS[:1], 3, num_frames=frames)
    torch.testing.assert_close(drawn, expected.float(), rtol=0, atol=1e-4)
    if frames > 1:
        assert (drawn[:, 0] - drawn[:, -1]).abs().max() > 1e-2, "frames that are all the same would show nothing"


@pytest.mark.parametrize("num_steps", [1, 2, 4, 50])
def test_wans_schedule_is_that_of_the_scheduler_it_is_shipped_with(
    folder: Callable[[str], Path], num_steps: int
) -> None:
    model = load("wan2.1", folder("wan2.1"))
    shipped = cast(Any, UniPCMultistepScheduler.from_pretrained(folder("wan2.1"), subfolder="scheduler"))
    shipped.set_timesteps(num_steps)
    assert shipped.config.flow_shift == SHIFT
    assert shipped.sigmas.tolist() == pytest.approx(model.sigmas(num_steps), abs=2e-6)


def test_wan_with_an_euler_scheduler_takes_its_schedule(folder: Callable[[str], Path], tmp_path: Path) -> None:
    pipeline = WanPipeline.from_pretrained(
        folder("wan2.1"), scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0), dtype=torch.float32
    )
    pipeline.save_pretrained(tmp_path)
    model = load("wan2.1", tmp_path, (32, 32))
    scheduler = cast(Any, pipeline.scheduler)
    scheduler.set_timesteps(6)
    assert scheduler.sigmas.tolist() == pytest.approx(model.sigmas(6), abs=1e-6)


def _first_and_second(model: Any, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Return what each of both transformers predicts, guided by 4 and by 2, from diffusers' own calls."""
    predictions = []
    for part, scale in ((model.pipeline.transformer, 4.0), (model.pipeline.transformer_2, 2.0)):
        with_prompt, without = (
            part(
                hidden_states=x,
                timestep=torch.tensor([1000.0 * sigma]),
                encoder_hidden_states=model.pipeline.encode_prompt(
                    text, do_classifier_free_guidance=False, max_sequence_length=LENGTH
                )[0],
            ).sample
            for text in (PROMPTS[0], "")
        )
        predictions.append(without + scale * (with_prompt - without))
    return predictions[0], predictions[1]


@pytest.mark.parametrize(("sigma", "is_second"), [(1.0, False), (BOUNDARY, False), (0.799, True), (0.1, True)])
@torch.no_grad()
def test_sigma_decides_between_two_transformers_and_between_their_guidance_scales(
    folder: Callable[[str], Path], sigma: float, is_second: bool
) -> None:
    model = load("wan2.2-a14b", folder("wan2.2-a14b"))
    x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    first, second = _first_and_second(model, x, sigma)
    assert (first - second).abs().max() > 1e-2
    velocity = model.velocity(x, sigma, model.encode(PROMPTS[:1]))
    torch.testing.assert_close(velocity, second if is_second else first, rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_a_scale_of_its_own_the_second_transformer_has_the_firsts(folder: Callable[[str], Path]) -> None:
    x = torch.randn(1, 4, 2, 4, 8, generator=torch.Generator().manual_seed(1))
    drawn = [
        model.velocity(x, 0.5, model.encode(PROMPTS[:1]))
        for scale in (0.0, 4.0, 3.0)
        for model in [load("wan2.2-a14b", folder("wan2.2-a14b"), guidance_scale_2=scale)]
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("sigma", "part"), [(0.9, "transformer."), (0.5, "transformer_2.")])
def test_gradients_reach_the_adapters_of_the_transformer_that_predicts(
    folder: Callable[[str], Path], sigma: float, part: str
) -> None:
    model = load("wan2.2-a14b", folder("wan2.2-a14b"), gradient_checkpointing=True)
    policy = Policy(model, LoraConfig(rank=2, alpha=4), seed=0, with_reference=False, ema_decay=0.0)
    x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    model.transformer.train()
    model.velocity(x, sigma, model.encode(PROMPTS[:1])).square().mean().backward()
    reached = {name for name, p in policy.trained.items() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {name for name in policy.trained if name.startswith(part) and "lora_B" in name}
    assert len(reached) == 2 * 2 * 4  # blocks, self- and cross-attention, q k v and out


@torch.no_grad()
def test_the_reference_of_a_full_fine_tuning_is_both_transformers(folder: Callable[[str], Path]) -> None:
    model = load("wan2.2-a14b", folder("wan2.2-a14b"))
    x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    conditioning = model.encode(PROMPTS[:1])
    before = [model.velocity(x, sigma, conditioning) for sigma in (0.9, 0.5)]
    policy = Policy(model, LoraConfig(rank=0), seed=0, with_reference=True, ema_decay=0.0)
    for parameter in policy.trained.values():
        parameter.mul_(1.1)
    for sigma, velocity in zip((0.9, 0.5), before, strict=True):
        with policy.reference():
            torch.testing.assert_close(policy.velocity(x, sigma, conditioning), velocity, rtol=0, atol=1e-5)
        assert not torch.allclose(policy.velocity(x, sigma, conditioning), velocity, atol=1e-3)
    assert model.pipeline.transformer is cast(TwoStageTransformer, model.transformer).transformer


def test_exchanging_the_network_exchanges_both_parts_of_the_pipeline(folder: Callable[[str], Path]) -> None:
    model = load("wan2.2-a14b", folder("wan2.2-a14b"))
    other = copy.deepcopy(cast(TwoStageTransformer, model.transformer))
    assert model.pipeline.transformer_2 is not other.transformer_2
    model.transformer = other
    assert model.pipeline.transformer is other.transformer
    assert model.pipeline.transformer_2 is other.transformer_2


@pytest.mark.parametrize("name", ["wan2.1", "hunyuanvideo"])
def test_a_model_that_draws_clips_refuses_to_edit_an_image(folder: Callable[[str], Path], name: str) -> None:
    model = load(name, folder(name))
    for call in (
        lambda: model.encode_image(torch.zeros(1, 3, 32, 64)),
        lambda: model.encode_mask(torch.zeros(1, 1, 32, 64, dtype=torch.bool)),
    ):
        with pytest.raises(ConfigError, match=r"model\.num_frames is 5, .* set it to 1"):
            call()


def test_a_second_guidance_scale_needs_a_second_transformer(folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"model\.guidance_scale_2 is for a second transformer"):
        load("wan2.1", folder("wan2.1"), guidance_scale_2=2.0)


def test_a_boundary_without_a_second_transformer_is_refused(folder: Callable[[str], Path], tmp_path: Path) -> None:
    pipeline = WanPipeline.from_pretrained(folder("wan2.1"), boundary_ratio=0.9)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="lacks a transformer"):
        load("wan2.1", tmp_path)


def test_a_folder_from_before_wan_2_2_says_less_and_loads(folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(folder("wan2.1"), tmp_path, dirs_exist_ok=True)
    newer = {"model_index.json": ("transformer_2", "boundary_ratio", "expand_timesteps")}
    newer["vae/config.json"] = ("scale_factor_spatial", "scale_factor_temporal", "is_residual", "patch_size")
    for name, keys in newer.items():
        said = json.loads((tmp_path / name).read_text())
        assert set(keys) <= said.keys()
        (tmp_path / name).write_text(json.dumps({key: value for key, value in said.items() if key not in keys}))
    drawn, expected = (draw(load("wan2.1", place, (32, 32)), PROMPTS[:1], 2) for place in (tmp_path, folder("wan2.1")))
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("name", ["wan2.1", "hunyuanvideo"])
def test_a_prompts_tokens_are_counted_as_they_are_encoded(folder: Callable[[str], Path], name: str) -> None:
    model = load(name, folder(name), max_sequence_length=100)
    prompts = ["", "fox", *PROMPTS]
    text = [model.encode([prompt]).tensors["text"][0] for prompt in prompts]
    assert [int(one.any(-1).sum()) for one in text] == model.count_tokens(prompts)  # Wan's texts end in zeros


def test_hunyuan_videos_guidance_is_an_embedding_and_has_no_negative_prompt(folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"model\.negative_prompt: HunyuanVideo"):
        load("hunyuanvideo", folder("hunyuanvideo"), negative_prompt="blurry")
    x = torch.randn(1, 4, 2, 4, 8, generator=torch.Generator().manual_seed(1))
    weak, strong = (
        model.velocity(x, 0.5, model.encode(PROMPTS[:1]))
        for scale in (1.0, 6.0)
        for model in [load("hunyuanvideo", folder("hunyuanvideo"), guidance_scale=scale)]
    )
    assert (weak - strong).abs().max() > 1e-3


def test_wans_vae_stays_in_float32(folder: Callable[[str], Path]) -> None:
    model = load("wan2.1", folder("wan2.1"), dtype="bfloat16")
    assert model.pipeline.vae.dtype == torch.float32
    assert model.pipeline.text_encoder.dtype == torch.bfloat16


@torch.no_grad()
def test_int8_weights_are_those_of_both_transformers_and_take_adapters(folder: Callable[[str], Path]) -> None:
    pytest.importorskip("torchao", reason="extra quantize, which writes warnings into every command, is not in dev")
    exact = load("wan2.2-a14b", folder("wan2.2-a14b"))
    quantised = load("wan2.2-a14b", folder("wan2.2-a14b"), quantize="int8")
    x = torch.randn(1, *exact.latent_shape, generator=torch.Generator().manual_seed(1))
    conditioning = exact.encode(PROMPTS[:1])
    quantised.encode(PROMPTS[:1])
    policy = Policy(quantised, LoraConfig(rank=2, alpha=4), seed=0, with_reference=False, ema_decay=0.0)
    for sigma in (0.9, 0.5):
        expected, near = exact.velocity(x, sigma, conditioning), policy.velocity(x, sigma, conditioning)
        assert 0 < (near - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", ["wan2.1", "hunyuanvideo"])
def test_clips_decoded_one_by_one_are_the_same(folder: Callable[[str], Path], name: str) -> None:
    x = torch.randn(3, 4, 2, 4, 8, generator=torch.Generator().manual_seed(1))
    expected = load(name, folder(name)).decode(x)
    sliced = load(name, folder(name), vae_decoding="sliced")
    assert sliced.pipeline.vae.use_slicing
    torch.testing.assert_close(sliced.decode(x), expected, rtol=0, atol=1e-5)
