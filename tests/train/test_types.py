"""bfloat16, gradient checkpointing and the split of work: what a GPU run uses, on the CPU."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixgrpo.config.schema import Config
from mixgrpo.flow.steps import flow_sde_kernel
from mixgrpo.train.checkpoint import find_checkpoint
from mixgrpo.train.loop import train
from mixgrpo.train.objective import make_objective
from mixgrpo.train.pieces import Piece


def _trained(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(run, "last") / "trained.safetensors")


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"autocast": "bfloat16"}},
        {"model": {"dtype": "bfloat16", "autocast": "bfloat16"}},
        {"model": {"dtype": "bfloat16"}, "lora": {"rank": 2}},
    ],
    ids=["autocast", "bfloat16 weights, full", "bfloat16 weights, LoRA"],
)
def test_a_run_in_bfloat16_keeps_trained_weights_in_float32_and_the_first_ratio_at_one(
    sections: dict[str, dict[str, object]], tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    train(make_config(iterations=2, **sections), tmp_path / "run")
    assert {weight.dtype for weight in _trained(tmp_path / "run").values()} == {torch.float32}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "train"]
    assert [row["ratio_max"] for row in rows] == [1.0, 1.0]
    assert all(row["skipped_updates"] == 0 and row["grad_norm"] > 0 for row in rows)


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"gradient_checkpointing": True}},
        {"rollout": {"micro_batch": 3}, "loss": {"micro_batch": 3}},
        {"rollout": {"share_trunk": False}},
    ],
    ids=["gradient checkpointing", "micro-batches", "nothing shared"],
)
def test_what_changes_only_memory_and_speed_changes_no_weights(
    sections: dict[str, dict[str, object]], tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    # compared by their gradients: a step of AdamW divides by their size, which would blow rounding up
    train(make_config(iterations=1, optim={"lr": 1e-3}), tmp_path / "plain")
    train(make_config(iterations=1, optim={"lr": 1e-3}, **sections), tmp_path / "other")
    plain, other = _moments(tmp_path / "plain"), _moments(tmp_path / "other")
    assert plain.keys() == other.keys()
    total = torch.cat([value.flatten() for value in plain.values()])
    difference = torch.cat([(plain[name] - other[name]).flatten() for name in plain])
    assert total.norm() > 0
    assert difference.norm() < 1e-3 * total.norm()


def _moments(run: Path) -> dict[str, torch.Tensor]:
    """Return the gradients of a run's only update, as the optimiser's running means have them."""
    state = load_file(find_checkpoint(run, "last") / "optimizer.safetensors")
    return {name: value for name, value in state.items() if name.endswith(":exp_avg")}


@pytest.mark.parametrize("kind", ["grpo", "neighbor", "nft", "awm"])
def test_losses_and_divergences_of_bfloat16_velocities_are_computed_in_float32(
    kind: str, make_config: Callable[..., Config]
) -> None:
    """They equal those of the same velocities in float32, to the last bit."""
    rollout = {} if kind == "grpo" else {"kernel": "ode", "noise_spread": 1.0}
    config = make_config(rollout=rollout, loss={"type": kind, "clip_range": None})
    objective = make_objective(config, partial(flow_sde_kernel, eta=0.7) if kind == "grpo" else None)
    x, x_next = torch.randn(2, 3, 5, 4)
    v, other = (torch.randn(3, 5, 4).bfloat16() for _ in range(2))
    state = torch.arange(3)
    piece = Piece(2, 0.8, 0.6, x, state, x_next, state, torch.tensor([1.0, -1.0, 0.5]))
    if kind == "neighbor":
        piece = Piece(2, 0.8, 0.6, x, state, torch.randn(12, 5, 4), state.repeat_interleave(4), torch.randn(12))
    divergence = objective.divergence(piece, v, other)
    assert divergence.dtype == torch.float32
    assert torch.equal(divergence, objective.divergence(piece, v.float(), other.float()))
    loss = objective.loss(piece, v, other).loss
    assert loss.dtype == torch.float32
    assert torch.equal(loss, objective.loss(piece, v.float(), other.float()).loss)
