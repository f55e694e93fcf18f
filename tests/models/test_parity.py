"""Every family draws what its own diffusers pipeline draws, from the same noise, by our loop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from mixgrpo.data.prompts import Prompt, negatives
from mixgrpo.errors import ConfigError
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan
from mixgrpo.flow.rollout import rollout
from mixgrpo.models import load_model
from mixgrpo.models.pipeline import PipelineModel
from tests.models.families import TINY, save

PROMPTS = ["a red fox", "a somewhat longer prompt about two blue foxes on a hill"]
LENGTH = 64


@pytest.fixture(scope="module", params=list(TINY))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save(request.param, tmp_path_factory.mktemp("families") / "model")


def load(name: str, folder: Path, size: tuple[int, int] | None = None, **options: Any) -> PipelineModel:
    height, width = size or TINY[name].size
    options = {"max_sequence_length": LENGTH, **TINY[name].options, **options}
    model = load_model(str(folder), height=height, width=width, **options)
    assert isinstance(model, PipelineModel)
    return model


def draw(model: PipelineModel, prompts: Sequence[str], num_steps: int = 4) -> Tensor:
    conditioning = model.encode(prompts, negatives(prompts))
    plan = TrajectoryPlan(sigmas=model.sigmas(num_steps), window=range(0), tail_order=1)
    drawn = rollout(
        lambda x, sigma, rows: model.velocity(x, sigma, conditioning.take(rows)),
        plan,
        Noise(5, 0, model.latent_shape),
        kernel=None,
        prompts=range(len(prompts)),
        group_size=1,
        micro_batch=len(prompts),
    )
    return model.decode(drawn.x0[:, 0])


def draw_with_diffusers(
    name: str, pipeline: Any, model: PipelineModel, prompts: Sequence[str], num_steps: int = 4, **call: Any
) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    TINY[name].schedule(pipeline, num_steps)
    noise = Noise(5, 0, model.latent_shape)
    latents = torch.stack([noise.initial(index, None) for index in range(len(prompts))])
    tiny, height, width = TINY[name], model.options.height, model.options.width
    arguments = dict(tiny.call)
    if tiny.calls == 2:
        led_from = [negative or tiny.options.get("negative_prompt", "") for negative in negatives(prompts)]
        arguments |= tiny.negative(pipeline, led_from, LENGTH)
    output = pipeline(
        prompt=list(prompts),
        height=height,
        width=width,
        num_inference_steps=num_steps,
        latents=tiny.latents(latents, height, width),
        max_sequence_length=LENGTH,
        output_type="pt",
        **(arguments | call),
    )
    return tiny.drawn(output)


def test_a_prompt_may_have_a_negative_prompt_of_its_own(family: tuple[str, Path]) -> None:
    name, folder = family
    model = load(name, folder)
    own = [Prompt(PROMPTS[0], {"negative_prompt": "a long and ugly list of things"}), Prompt(PROMPTS[1])]
    if not model.is_guided:
        with pytest.raises(ConfigError, match=r"negative prompts \(1 do\), such as 'a long .* no classifier-free"):
            model.encode(own, negatives(own))
        return
    drawn = draw(model, own)
    expected = draw_with_diffusers(name, DiffusionPipeline.from_pretrained(folder), model, own)
    torch.testing.assert_close(drawn, expected.float(), rtol=0, atol=1e-4)
    shared = draw(model, PROMPTS)
    assert not torch.allclose(drawn[0], shared[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(drawn[1], shared[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [None, (64, 32), (96, 64)])
def test_our_loop_draws_what_the_pipeline_draws(family: tuple[str, Path], size: tuple[int, int] | None) -> None:
    name, folder = family
    model = load(name, folder, size)
    prompts = PROMPTS if size is None else PROMPTS[:1]
    expected = draw_with_diffusers(name, DiffusionPipeline.from_pretrained(folder), model, prompts)
    drawn = draw(model, prompts)
    frames = (TINY[name].num_frames,) if TINY[name].num_frames > 1 else ()
    assert drawn.shape == (len(prompts), *frames, 3, model.options.height, model.options.width)
    assert drawn.std() > 0.02, "a picture of one colour would show nothing"
    torch.testing.assert_close(drawn, expected.float(), rtol=0, atol=1e-4)
