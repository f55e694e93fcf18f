"""Small models keep what decides the code path, and a run with each family goes through."""

import json
from pathlib import Path
from typing import Any

import pytest

from mixgrpo.dry.known import find_known
from mixgrpo.dry.models import save_small
from mixgrpo.dry.run import FOLDER, dry_run
from mixgrpo.errors import ConfigError, ModelError
from mixgrpo.models.load import part_configs
from mixgrpo.models.registry import MODELS, find_model
from tests.dry.settings_file import LARGE, settings

FAMILIES = {
    "black-forest-labs/FLUX.1-dev": {},
    "black-forest-labs/FLUX.2-dev": {},
    "black-forest-labs/FLUX.2-klein-base-4B": {"guidance_scale": 4.0, "negative_prompt": "blurry"},
    "stabilityai/stable-diffusion-3.5-medium": {"guidance_scale": 4.5, "negative_prompt": "blurry"},
    "Qwen/Qwen-Image": {"guidance_scale": 4.0},
    "Tongyi-MAI/Z-Image-Turbo": {"guidance_scale": 0.0},
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": {"num_frames": 81, "guidance_scale": 4.0, "guidance_scale_2": 3.0},
    "hunyuanvideo-community/HunyuanVideo": {"num_frames": 61, "guidance_scale": 6.0},
}


def test_every_family_that_can_be_trained_is_tried() -> None:
    assert {find_known(path).pipeline for path in FAMILIES} == set(MODELS)


@pytest.mark.parametrize("path", FAMILIES)
def test_a_run_of_every_family_goes_through(path: str, tmp_path: Path) -> None:
    lora = {"rank": 4} if "Qwen" in path or "Wan" in path else {}
    config = settings(tmp_path, model={"path": path, **LARGE, **FAMILIES[path]}, lora=lora)
    done = dry_run(config, tmp_path / "run")
    assert (done.outcome.reason, done.outcome.iteration) == ("finished", 2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["start", "eval", "train", "eval", "train", "eval", "end"]
    assert all(row["grad_norm"] > 0 for row in rows if row["kind"] == "train")
    assert json.loads((tmp_path / "run" / "resolved.json").read_text())["description"].startswith("DRY RUN")
    assert "DRY RUN: small random model" in (tmp_path / "run" / "report.html").read_text()
    exported = tmp_path / "run" / "export"
    if lora:
        assert (exported / "pytorch_lora_weights.safetensors").is_file()
    else:
        assert json.loads((exported / "model_index.json").read_text())["_class_name"] == done.pipeline
    kept = list((tmp_path / "run" / "samples").glob("*/*.*"))
    assert {file.suffix for file in kept} == {".webp" if "num_frames" in FAMILIES[path] else ".png"}


def small(path: str, folder: Path, **options: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]], int]:
    """Return the index and the configs of a small model, and what the sides of its pictures are multiples of."""
    saved = save_small(find_known(path, **options), folder / "small")
    parts = part_configs(saved)
    return (
        json.loads((saved / "model_index.json").read_text()),
        parts,
        find_model(str(saved), "")[1].side_multiple(parts),
    )


@pytest.mark.parametrize(
    ("path", "index", "transformer", "side"),
    [
        ("flux-nano", {}, {"guidance_embeds": True}, 8),
        ("black-forest-labs/FLUX.1-dev", {}, {"guidance_embeds": True}, 16),
        ("black-forest-labs/FLUX.1-schnell", {}, {"guidance_embeds": False}, 16),
        ("black-forest-labs/FLUX.2-dev", {}, {"guidance_embeds": True}, 16),
        ("black-forest-labs/FLUX.2-klein-4B", {"is_distilled": True}, {"guidance_embeds": False}, 16),
        ("black-forest-labs/FLUX.2-klein-base-9B", {"is_distilled": False}, {"guidance_embeds": False}, 16),
        ("stabilityai/stable-diffusion-3-medium-diffusers", {}, {"qk_norm": None, "dual_attention_layers": []}, 16),
        ("stabilityai/stable-diffusion-3.5-large", {}, {"qk_norm": "rms_norm", "dual_attention_layers": []}, 16),
        ("stabilityai/stable-diffusion-3.5-medium", {}, {"qk_norm": "rms_norm", "dual_attention_layers": [0]}, 16),
        ("Qwen/Qwen-Image", {}, {"guidance_embeds": False}, 16),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", {"boundary_ratio": None, "expand_timesteps": False}, {}, 16),
        ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", {"boundary_ratio": 0.875}, {}, 16),
        ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", {"boundary_ratio": None, "expand_timesteps": True}, {}, 32),
    ],
)
def test_what_decides_the_code_path_is_that_of_the_published_model(
    path: str, index: dict[str, Any], transformer: dict[str, Any], side: int, tmp_path: Path
) -> None:
    found, parts, multiple = small(path, tmp_path)
    assert {key: found.get(key) for key in index} == index
    assert {key: parts["transformer"].get(key) for key in transformer} == transformer
    assert ("transformer_2" in parts) == (path == "Wan-AI/Wan2.2-T2V-A14B-Diffusers")
    assert multiple == side
    weights = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert weights < 8e6


def test_a_folder_of_the_user_decides_for_itself(tmp_path: Path) -> None:
    """Config files alone are enough: no weights are read."""
    folder = tmp_path / "mine"
    files = {
        "model_index.json": {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]},
        "transformer/config.json": {"_class_name": "FluxTransformer2DModel", "guidance_embeds": False, "num_layers": 3},
        "vae/config.json": {
            "_class_name": "AutoencoderKL",
            "block_out_channels": [64, 128, 256],
            "scaling_factor": 0.7,
        },
        "scheduler/scheduler_config.json": {"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    _, parts, side = small(
        str(folder), tmp_path, targets=["transformer_blocks.1.attn.to_q", "x.transformer_blocks.7.ff"]
    )
    assert (parts["transformer"]["guidance_embeds"], parts["transformer"]["num_layers"], side) == (False, 3, 8)
    assert parts["vae"]["scaling_factor"] == 0.7
    scheduler = json.loads((tmp_path / "small" / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["_class_name"], scheduler["flow_shift"]) == ("UniPCMultistepScheduler", 5.0)


def test_layers_that_get_adapters_are_there_if_the_model_has_them(tmp_path: Path) -> None:
    """FLUX.1-dev has 19 blocks of two streams: their numbers end at 18."""
    model = {"path": "black-forest-labs/FLUX.1-dev", **LARGE}
    there = settings(tmp_path, model=model, lora={"rank": 2, "target_modules": ["transformer_blocks.18.attn.to_q"]})
    assert dry_run(there, tmp_path / "there").outcome.reason == "finished"
    for name in ("transformer_blocks.19.attn.to_q", "attn.to_queries"):
        config = settings(tmp_path, model=model, lora={"rank": 2, "target_modules": [name]})
        with pytest.raises(ConfigError, match=r"lora\.target_modules"):
            dry_run(config, tmp_path / name)


def test_a_hub_id_that_nobody_knows_is_asked_for_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = settings(tmp_path, model={"path": "nobody/is-not-there"})
    said = r"'nobody/is-not-there' .*hf download nobody/is-not-there --include '\*\.json'.*--model\.path FOLDER"
    with pytest.raises(ModelError, match=said):
        dry_run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"height": 700}, r"model\.height \(700\) must be a multiple of 16 .*nearest: 688 or 704"),
        ({"num_frames": 5}, r"model\.num_frames \(5\) must be 1"),
        ({"attention": "flas"}, r"model\.attention is 'flas'.*did you mean flash"),
        ({"negative_prompt": "blurry"}, r"model\.negative_prompt: FLUX\.1 .*leave it empty"),
        ({"guidance_scale_2": 3.0}, r"model\.guidance_scale_2 is for a second transformer"),
    ],
)
def test_mistakes_about_the_model_are_found_although_the_picture_is_small(
    model: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = settings(tmp_path, model={"path": "black-forest-labs/FLUX.1-dev", **LARGE, **model})
    with pytest.raises(ConfigError, match=said):
        dry_run(config, tmp_path / "run")


def test_stand_ins_lie_in_the_folder_of_the_run(tmp_path: Path) -> None:
    config = settings(tmp_path, model={"prompt_cache": str(tmp_path / "cache")})
    done = dry_run(config, tmp_path / "run")
    assert {entry.name for entry in (tmp_path / "run" / FOLDER).iterdir()} == {
        "flux-nano-small-random",
        "encoded-prompts",
    }
    assert not (tmp_path / "cache").exists()
    assert done.config.model.path.startswith(str(tmp_path / "run"))
