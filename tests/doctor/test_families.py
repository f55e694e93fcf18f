"""What `doctor` compares agrees for the models of every family."""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler

from mixgrpo.config.load import load_config
from mixgrpo.doctor.sampling import HALF, check_sampling, draw_both_ways
from tests.models.families import TINY, flux, save
from tests.models.test_parity import load


@pytest.mark.parametrize("name", TINY)
def test_our_loop_and_the_pipeline_draw_one_picture(name: str, tmp_path: Path) -> None:
    model = load(name, save(name, tmp_path / "model"))
    ours, theirs = draw_both_ways(model, "a fox and two blue hills", num_steps=3)
    assert ours.shape == theirs.shape
    assert ours.std() > 0.02
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["flux-dev", "flux2-klein-base", "hunyuanvideo"])
def test_in_bfloat16_only_the_pipelines_rounding_differs(name: str, tmp_path: Path) -> None:
    model = load(name, save(name, tmp_path / "model"), dtype="bfloat16")
    ours, theirs = draw_both_ways(model, "a fox and two blue hills", num_steps=4)
    assert 1e-4 < torch.quantile((ours - theirs).abs().flatten(), 0.99) < HALF


def test_a_pipeline_with_another_solver_is_not_compared(tmp_path: Path) -> None:
    pipeline = flux()
    pipeline.scheduler = FlowMatchHeunDiscreteScheduler()
    pipeline.save_pretrained(tmp_path / "model")
    config = load_config("flux-nano")
    options = {"path": str(tmp_path / "model"), "height": 32, "width": 64, "max_sequence_length": 64}
    finding = check_sampling(config.model_copy(update={"model": config.model.model_copy(update=options)}), "a fox")
    assert finding.state == "note"
    assert "FlowMatchHeunDiscreteScheduler" in finding.text
