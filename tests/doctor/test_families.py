"""What `doctor` compares agrees for the models of every family."""

from pathlib import Path

import pytest
import torch

from mixgrpo.config.load import load_config
from mixgrpo.doctor.sampling import check_sampling, draw_both_ways
from tests.models.families import TINY, save
from tests.models.test_parity import load

_OTHER_SOLVER = [name for name in TINY if name.startswith("wan")]


@pytest.mark.parametrize("name", [name for name in TINY if name not in _OTHER_SOLVER])
def test_our_loop_and_the_pipeline_draw_one_picture(name: str, tmp_path: Path) -> None:
    model = load(name, save(name, tmp_path / "model"))
    ours, theirs = draw_both_ways(model, "a fox and two blue hills", num_steps=3)
    assert ours.shape == theirs.shape
    assert ours.std() > 0.02
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", _OTHER_SOLVER[:1])
def test_a_pipeline_with_another_solver_is_not_compared(name: str, tmp_path: Path) -> None:
    height, width = TINY[name].size
    options = {"path": str(save(name, tmp_path / "model")), "height": height, "width": width, **TINY[name].options}
    config = load_config("flux-nano")
    model = config.model.model_copy(update={**options, "max_sequence_length": 64})
    finding = check_sampling(config.model_copy(update={"model": model}), "a fox")
    assert finding.state == "note"
    assert "UniPCMultistepScheduler" in finding.text
