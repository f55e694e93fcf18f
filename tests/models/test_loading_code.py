"""The Python that a card shows draws what the pipeline draws with the settings that the model was drawn with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from mixgrpo.report.exported import Exported, loading_code
from tests.models.families import TINY, save
from tests.models.test_parity import LENGTH, PROMPTS, load

STEPS = 2
WITHOUT_NEGATIVE = {"sd3.5-medium", "flux2-klein-base", "qwen-image", "z-image", "wan2.1"}
"""Families to be shown also without the negative prompt that they have in `TINY`: guidance must stay on."""

CASES = [
    *((name, {}) for name in TINY),
    *((name, {"negative_prompt": ""}) for name in sorted(WITHOUT_NEGATIVE)),
    *((name, {"guidance_scale": 2.5}) for name in ("flux-dev", "flux2-klein-base", "qwen-image")),  # nobody's default
]


def written(exported: Exported, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, dict[str, Any]]:
    """Run the code in an empty folder; returns the frames [F, H, W, 3] that it wrote, and its names."""
    kept: list[Any] = []

    def keep(frames: list[Image.Image], file: str, fps: int) -> None:
        assert (file, fps) == ("clip.mp4", 16)
        kept.extend(frames)

    monkeypatch.setattr("diffusers.utils.export_to_video", keep)  # needs a library that the project does without
    monkeypatch.chdir(folder)
    code = loading_code(exported, str(folder / "model"), prompt=PROMPTS[0])
    code.insert(code.index("result = pipe("), "torch.manual_seed(3)")  # loading takes random numbers, too
    names: dict[str, Any] = {}
    exec("\n".join(code), names)
    if Path("image.png").is_file():
        with Image.open("image.png") as image:
            kept.append(image.convert("RGB"))
    return np.stack([np.asarray(frame) for frame in kept]), names


def expected(name: str, folder: Path, negative: str | None, scale: float | None) -> tuple[np.ndarray, int]:
    """Return what the family's pipeline draws, called as `TINY` says, and how often it has its transformer predict."""
    tiny, pipeline = TINY[name], DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    calls: list[int] = []

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append(len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]))

    for network in filter(None, [pipeline.transformer, getattr(pipeline, "transformer_2", None)]):
        network.register_forward_pre_hook(count, with_kwargs=True)
    led_from = {} if negative is None else tiny.negative(pipeline, [negative], LENGTH)
    scales = {} if scale is None else {key: scale for key in tiny.call if key in ("guidance_scale", "true_cfg_scale")}
    torch.manual_seed(3)
    height, width = tiny.size
    output = pipeline(
        prompt=[PROMPTS[0]],
        height=height,
        width=width,
        num_inference_steps=STEPS,
        max_sequence_length=LENGTH,
        output_type="np",
        **(tiny.call | led_from | scales),
    )
    frames = output.frames[0] if hasattr(output, "frames") else output.images
    return np.asarray(frames), sum(calls)


@pytest.mark.parametrize(("name", "changed"), CASES)
def test_the_code_draws_what_the_pipeline_draws(
    name: str, changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(name, tmp_path / "model")
    model = load(name, folder, **changed)
    exported = Exported(
        version="0",
        base=name,
        run="run",
        step="step-1",
        pipeline=model.pipeline_class,
        call={**model.call_arguments(), "num_inference_steps": STEPS},
    )
    assert (exported.is_video, exported.draws_frames) == (TINY[name].num_frames > 1, len(model.latent_shape) == 4)
    drawn, names = written(exported, tmp_path, monkeypatch)
    options = {**TINY[name].options, **changed}
    negative = options.get("negative_prompt", "" if TINY[name].calls == 2 else None)
    frames, calls = expected(name, folder, negative, changed.get("guidance_scale"))
    assert calls == STEPS * TINY[name].calls
    assert frames.std() > 0.02
    assert drawn.shape == frames.shape
    assert np.abs(drawn / 255.0 - frames).max() < 1.0 / 255.0
    assert names["pipe"].device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_parts_that_stay_in_float32_are_loaded_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save("wan2.1", tmp_path / "model")
    model = load("wan2.1", folder, dtype="bfloat16")
    assert next(model.pipeline.vae.parameters()).dtype == torch.float32
    exported = Exported(
        version="0",
        base="x",
        run="run",
        step="step-1",
        pipeline="WanPipeline",
        dtype="bfloat16",
        float32_parts=model.float32_parts,
        call={**model.call_arguments(), "num_inference_steps": STEPS},
    )
    pipeline = written(exported, tmp_path, monkeypatch)[1]["pipe"]
    for part in ("vae", "transformer", "text_encoder"):
        loaded = {parameter.dtype for parameter in getattr(pipeline, part).parameters()}
        assert torch.float32 in loaded if part == "vae" else torch.bfloat16 in loaded
        assert (loaded == {torch.float32}) == (part == "vae")
