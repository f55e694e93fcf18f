"""What `doctor` compares agrees for the models of every family."""

from pathlib import Path

import pytest
import torch

from mixgrpo.doctor.sampling import draw_both_ways
from tests.models.families import TINY, save
from tests.models.test_parity import load


@pytest.mark.parametrize("name", TINY)
def test_our_loop_and_the_pipeline_draw_one_picture(name: str, tmp_path: Path) -> None:
    model = load(name, save(name, tmp_path / "model"))
    ours, theirs = draw_both_ways(model, "a fox and two blue hills", num_steps=3)
    assert ours.shape == theirs.shape
    assert ours.std() > 0.02
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
