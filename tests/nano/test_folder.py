"""Untrained components: the folder is a FluxPipeline, in bfloat16 on disk, and the flow stage resumes exactly."""

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file

from mixgrpo.nano.flow import (
    FlowModel,
    choose,
    make_flaw_stage,
    make_flow_stage,
    pack,
    training_sigmas,
)
from mixgrpo.nano.folder import make_pipeline, make_transformer, sample, save_folder
from mixgrpo.nano.stage import StageSettings, run_stage
from mixgrpo.nano.text import PROMPT_BYTES, PromptEncoder, make_text_stage, place_targets
from mixgrpo.nano.vae import make_vae

PROMPT = 'the word "RIVER" in yellow on purple'


def make_untrained() -> FluxPipeline:
    encoder = PromptEncoder()
    return make_pipeline(
        transformer=make_transformer(),
        vae=make_vae(),
        clip=encoder.clip,
        t5=encoder.t5,
        clip_tokenizer=encoder.clip_tokenizer,
        t5_tokenizer=encoder.t5_tokenizer,
    )


def test_saved_folder_loads_and_draws_with_diffusers_alone(tmp_path):
    pipeline = make_untrained()
    before = {key: value.clone() for key, value in pipeline.transformer.state_dict().items()}
    save_folder(pipeline, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in pipeline.transformer.state_dict().items())

    weights = [load_file(file) for file in tmp_path.rglob("*.safetensors")]
    assert len(weights) == 4
    assert {tensor.dtype for part in weights for tensor in part.values()} == {torch.bfloat16}
    assert sum(file.stat().st_size for file in tmp_path.rglob("*")) < 30e6

    loaded = FluxPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    images = sample(loaded, [PROMPT, PROMPT], num_inference_steps=2, seed=0)
    assert images.shape == (2, 3, 32, 96)
    assert images.isfinite().all()


def test_training_and_the_pipeline_see_the_same_numbers():
    encoder = PromptEncoder()
    model = FlowModel(encoder).eval()
    pipeline = make_untrained()
    pipeline.text_encoder, pipeline.text_encoder_2 = encoder.clip, encoder.t5
    with torch.no_grad():
        embeddings, pooled = encoder([PROMPT])
        theirs = pipeline.encode_prompt(PROMPT, None, max_sequence_length=PROMPT_BYTES)
    assert torch.equal(embeddings, theirs[0])
    assert torch.equal(pooled, theirs[1])
    latents, image_ids = pipeline.prepare_latents(
        1, 8, 32, 96, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(0)
    )
    assert latents.shape == (1, 48, 32)
    assert torch.equal(image_ids, model.image_ids)
    raw = torch.randn(1, 8, 8, 24)
    assert torch.equal(pipeline._unpack_latents(pack(raw), 32, 96, pipeline.vae_scale_factor), raw)


def test_place_targets_point_at_the_letters_of_the_word():
    targets = place_targets(["RIVER", "ABC"], PROMPT.index('"') + 1)
    at = PROMPT.index("RIVER")
    assert targets["place"][0, at : at + 6].tolist() == [1, 2, 3, 4, 5, 0]
    assert targets["place_from_end"][1, at : at + 4].tolist() == [3, 2, 1, 0]
    assert targets["letter"][1, at : at + 4].tolist() == [1, 2, 3, 0]


def test_every_epoch_visits_every_picture_once():
    for epoch in range(2):
        draws = range(epoch * 8, epoch * 8 + 8)
        seen = [index for draw in draws for index in choose(0, draw, batch_size=4, size=32)]
        assert sorted(seen) == list(range(32))


def test_training_sigmas_lean_towards_noise():
    sigmas = training_sigmas(1000, torch.Generator().manual_seed(0))
    assert sigmas.min() > 0
    assert sigmas.max() <= 1
    assert (sigmas > 0.5).float().mean() == torch.tensor(2 / 3).round(decimals=3)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_resumed_flow_stage_equals_uninterrupted_flow_stage(tmp_path, monkeypatch):
    def train(folder, *stops) -> dict[str, torch.Tensor]:
        folder.mkdir()
        make_vae_folder(folder)
        for stop in stops:
            settings = StageSettings(num_steps=2, batch_size=4, num_shards=2, learning_rate=1e-3, ema_decay=0.9)
            stage = make_flow_stage(folder, 0, settings, pool_size=256)
            monkeypatch.setattr(stage, "probe", dict)
            run_stage(stage, folder, stop_after=stop)
        return torch.load(folder / "flow.pt", weights_only=True)

    whole, parts = train(tmp_path / "whole", 2), train(tmp_path / "parts", 1, 2)
    for kind in ("weights", "average"):
        assert all(torch.equal(value, parts[kind][key]) for key, value in whole[kind].items())
    assert (tmp_path / "parts" / "flow" / "model_index.json").is_file()

    settings = StageSettings(num_steps=1, batch_size=4, num_shards=2, learning_rate=1e-3, ema_decay=0.9)
    flaw = make_flaw_stage(tmp_path / "parts", 0, settings, pool_size=256)
    monkeypatch.setattr(flaw, "probe", dict)
    run_stage(flaw, tmp_path / "parts")
    assert (tmp_path / "parts" / "flux-nano" / "model_index.json").is_file()


def make_vae_folder(folder) -> None:
    """Write what the first two stages leave: untrained, with a pool of noise instead of pictures."""
    torch.manual_seed(0)
    make_vae().save_pretrained(folder / "vae")
    make_text_stage(folder, 0).export()
    pool = torch.randn(256, 48, 32, generator=torch.Generator().manual_seed(0)).half()
    save_file({"latents": pool}, folder / "latents.safetensors")
