"""The stages' common loop: resumed equals uninterrupted, and mistakes are said."""

import json

import pytest
import torch
from torch import nn

from mixgrpo.errors import CheckpointError, TrainingError
from mixgrpo.nano.stage import Stage, StageSettings, learning_rate, run_stage

SETTINGS = StageSettings(
    num_steps=4,
    batch_size=8,
    num_shards=2,
    learning_rate=1e-2,
    warmup_steps=2,
    ema_decay=0.9,
    log_every=1,
    save_every=2,
    probe_every=2,
)


def make_stage(settings=SETTINGS, *, scale=1.0) -> Stage:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    modules = nn.ModuleDict({"model": model})

    def loss(draw: int, size: int):
        x = torch.randn(size, 3, generator=torch.Generator().manual_seed(draw))
        return (model(x) - x[:, :2]).square().mean() * scale

    def probe() -> dict[str, float]:
        return {"norm": model.weight.norm().item()}

    return Stage(name="toy", settings=settings, modules=modules, loss=loss, probe=probe, export=lambda: None)


def figures(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "toy.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_resumed_stage_equals_uninterrupted_stage(tmp_path):
    whole = make_stage()
    run_stage(whole, tmp_path / "whole")
    first = make_stage()
    run_stage(first, tmp_path / "parts", stop_after=2)
    second = make_stage()
    run_stage(second, tmp_path / "parts")

    assert torch.equal(second.modules["model"].weight, whole.modules["model"].weight)
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


def test_steps_after_the_last_save_are_done_again_and_logged_once(tmp_path):
    run_stage(make_stage(), tmp_path / "whole")
    run_stage(make_stage(), tmp_path / "parts", stop_after=2)
    with (tmp_path / "parts" / "toy.jsonl").open("a") as log:
        log.write(json.dumps({"stage": "toy", "step": 3, "seconds": 9.0, "loss": 0.0}) + "\n")
    run_stage(make_stage(), tmp_path / "parts")
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


def test_the_probe_sees_the_moving_average_and_training_goes_on_without_it(tmp_path):
    stage = make_stage()
    run_stage(stage, tmp_path)
    state = torch.load(tmp_path / "toy.pt", weights_only=True)
    average = state["average"]["model.weight"].norm().item()
    assert figures(tmp_path)[-1]["norm"] == pytest.approx(average, rel=1e-4)
    assert torch.equal(state["weights"]["model.weight"], stage.modules["model"].weight)


def test_state_of_another_length_is_refused(tmp_path):
    run_stage(make_stage(), tmp_path)
    longer = StageSettings(num_steps=9, batch_size=8, learning_rate=1e-2)
    with pytest.raises(CheckpointError, match="4 steps, this one has 9"):
        run_stage(make_stage(longer), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path):
    with pytest.raises(TrainingError, match="toy: the loss of step 0 is nan"):
        run_stage(make_stage(scale=float("nan")), tmp_path)


def test_learning_rate_warms_up_and_decays():
    cosine = StageSettings(num_steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10)
    flat = StageSettings(num_steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10, decay_steps=20)
    assert learning_rate(0, cosine) == pytest.approx(0.1)
    assert learning_rate(50, cosine) == pytest.approx(0.51)
    assert learning_rate(50, flat) == learning_rate(80, flat) == pytest.approx(1.0)
    assert learning_rate(90, flat) == pytest.approx(0.51)
    assert learning_rate(100, flat) == learning_rate(100, cosine) == pytest.approx(0.02)
