"""Our one loop against FluxPipeline's own, hybrid inference, and what an export is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import load_file

from mixgrpo.config.schema import Config
from mixgrpo.errors import ConfigError, ModelError
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import ode_plan
from mixgrpo.models import FlowModel, bundled_folder, load_model
from mixgrpo.report.exported import loading_code, read_exported
from mixgrpo.train.export import export_run, load_run_model
from mixgrpo.train.inference import draw_batches
from mixgrpo.train.loop import train

PROMPTS = ['the word "CAT" in red on white', "something longer than the first"]
OPTIONS = {"plan": ode_plan(6, 3.0), "seed": 5, "batch": 2}


def draw_images(*arguments, **options) -> torch.Tensor:
    return torch.cat([images for _, images in draw_batches(*arguments, **options)])


def _pipeline_images(folder: Path, model: FlowModel, height: int, width: int, length: int) -> torch.Tensor:
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    noise = Noise(5, 0, model.latent_shape)
    images = pipeline(
        prompt=PROMPTS,
        height=height,
        width=width,
        num_inference_steps=6,
        guidance_scale=3.5,
        max_sequence_length=length,
        latents=torch.stack([noise.initial(0, None), noise.initial(1, None)]),
        output_type="np",
    ).images
    return torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)


def test_our_loop_equals_the_pipelines_own_on_random_weights(tiny_folder: Path, tiny_model: FlowModel) -> None:
    expected = _pipeline_images(tiny_folder, tiny_model, 16, 32, 32)
    torch.testing.assert_close(draw_images(tiny_model, PROMPTS, **OPTIONS), expected, rtol=0, atol=1e-4)


def test_our_loop_equals_the_pipelines_own_on_flux_nano() -> None:
    model = load_model("flux-nano", height=32, width=96, max_sequence_length=48)
    expected = _pipeline_images(bundled_folder("flux-nano"), model, 32, 96, 48)
    torch.testing.assert_close(draw_images(model, PROMPTS, **OPTIONS), expected, rtol=0, atol=1e-4)


def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in(tiny_model: FlowModel) -> None:
    together = draw_images(tiny_model, PROMPTS, **OPTIONS)
    alone = draw_images(tiny_model, PROMPTS, **{**OPTIONS, "batch": 1})
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_hybrid_inference_takes_the_first_steps_from_one_model_and_the_rest_from_the_other(
    tiny_folder: Path, tiny_model: FlowModel
) -> None:
    base = load_model(str(tiny_folder), height=16, width=32, max_sequence_length=32)
    with torch.no_grad():
        for parameter in tiny_model.transformer.parameters():
            parameter.mul_(1.2)
    calls: list[tuple[str, float]] = []
    for name, model in (("tuned", tiny_model), ("base", base)):
        predict = model.velocity

        def spy(x, sigma, conditioning, name=name, predict=predict):
            calls.append((name, sigma))
            return predict(x, sigma, conditioning)

        model.velocity = spy
    tuned, untuned = draw_images(tiny_model, PROMPTS, **OPTIONS), draw_images(base, PROMPTS, **OPTIONS)
    calls.clear()
    mixed = draw_images(tiny_model, PROMPTS, **OPTIONS, base=base, tuned_fraction=0.5)
    assert [name for name, _ in calls] == ["tuned"] * 3 + ["base"] * 3
    assert not torch.equal(mixed, tuned)
    assert not torch.equal(mixed, untuned)
    assert torch.equal(draw_images(tiny_model, PROMPTS, **OPTIONS, base=base, tuned_fraction=1.0), tuned)
    assert torch.equal(draw_images(tiny_model, PROMPTS, **OPTIONS, base=base, tuned_fraction=0.0), untuned)
    with pytest.raises(ConfigError, match="base model"):
        draw_images(tiny_model, PROMPTS, **OPTIONS, tuned_fraction=0.5)


def test_an_export_of_all_weights_draws_what_the_run_draws_and_diffusers_loads_it(
    tmp_path: Path, tiny_folder: Path, make_config: Callable[..., Config]
) -> None:
    run = tmp_path / "run"
    train(make_config(iterations=2, optim={"lr": 1e-2, "ema_decay": 0.3}), run)
    expected = draw_images(load_run_model(run, "best"), PROMPTS, **OPTIONS)
    model = load_model(str(tiny_folder), height=16, width=32, max_sequence_length=32)
    torch.testing.assert_close(_pipeline_images(run / "export", model, 16, 32, 32), expected, rtol=0, atol=2e-4)
    last = export_run(run, tmp_path / "last", which="last")
    drawn = _pipeline_images(last, model, 16, 32, 32)
    assert not torch.allclose(drawn, draw_images(model, PROMPTS, **OPTIONS), atol=1e-3)
    with pytest.raises(ConfigError, match="--merge has nothing to do"):
        export_run(run, tmp_path / "merged", merge=True)


def test_an_export_of_a_run_with_lora_is_the_adapter_and_merged_a_whole_pipeline(
    tmp_path: Path, tiny_folder: Path, make_config: Callable[..., Config]
) -> None:
    run = tmp_path / "run"
    train(make_config(iterations=2, lora={"rank": 2, "alpha": 6}, optim={"lr": 1e-2, "ema_decay": 0.3}), run)
    model = load_model(str(tiny_folder), height=16, width=32, max_sequence_length=32)
    untouched = draw_images(model, PROMPTS, **OPTIONS)
    expected = draw_images(load_run_model(run, "last"), PROMPTS, **OPTIONS)
    assert (expected - untouched).abs().max() > 1e-3
    weights = sorted(file.relative_to(run / "export").as_posix() for file in (run / "export").rglob("*.safetensors"))
    assert weights == ["comfyui_lora.safetensors", "pytorch_lora_weights.safetensors"]

    adapter = export_run(run, tmp_path / "adapter", which="last")
    model.load_lora(adapter)
    torch.testing.assert_close(draw_images(model, PROMPTS, **OPTIONS), expected, rtol=0, atol=2e-4)
    assert not any(parameter.requires_grad for parameter in model.transformer.parameters())

    merged = export_run(run, tmp_path / "merged", which="last", merge=True)
    torch.testing.assert_close(_pipeline_images(merged, model, 16, 32, 32), expected, rtol=0, atol=2e-4)
    for name in weights:
        alone, beside = load_file(adapter / name), load_file(merged / "lora" / name)
        assert alone.keys() == beside.keys()
        assert all(torch.equal(alone[key], beside[key]) for key in alone)
    with pytest.raises(ModelError, match=r"adapter alone.*--merge"):
        load_model(str(adapter), height=16, width=32)


def test_the_python_that_is_shown_loads_the_result(
    tmp_path: Path, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, lora in (("whole", {}), ("adapter", {"rank": 2})):
        train(make_config(iterations=1, lora=lora), tmp_path / name)
        exported = read_exported(tmp_path / name / "export")
        assert exported is not None
        assert exported.is_adapter == (name == "adapter")
        exec("\n".join(loading_code(exported, str(tmp_path / name / "export"))), {})
        with Image.open("image.png") as image:
            assert image.size == (32, 16)
        Path("image.png").unlink()


def test_export_does_not_write_over_other_files(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    train(make_config(iterations=1), tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="mine"):
        export_run(tmp_path / "run", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_export_does_not_replace_a_model_that_is_not_an_export(
    tmp_path: Path, tiny_folder: Path, make_config: Callable[..., Config]
) -> None:
    train(make_config(iterations=1), tmp_path / "run")
    with pytest.raises(ConfigError, match="earlier export"):
        export_run(tmp_path / "run", tiny_folder)
    assert (tiny_folder / "model_index.json").is_file()
    assert export_run(tmp_path / "run", tmp_path / "run" / "export").is_dir()  # an export of ours is replaced
