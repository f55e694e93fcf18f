"""Checkpoints: the pointers never name what is not there, and everything that counts comes back."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixgrpo.config.schema import Config
from mixgrpo.errors import CheckpointError, ConfigError, ModelError
from mixgrpo.models import load_model
from mixgrpo.train.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from mixgrpo.train.export import load_policy
from mixgrpo.train.state import RunState


def test_checkpoint_of_the_same_iteration_is_completed_not_replaced(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    policy = load_policy(make_config())
    optimizer = torch.optim.AdamW(list(policy.trained.values()))
    first = save_checkpoint(tmp_path, RunState(iteration=3), policy, optimizer, keep=1)
    inode = (first / "trained.safetensors").stat().st_ino
    state = RunState(iteration=3, best=0.5, best_iteration=3)
    assert save_checkpoint(tmp_path, state, policy, optimizer, keep=1, best=True) == first
    assert (first / "trained.safetensors").stat().st_ino == inode
    assert find_checkpoint(tmp_path, "best") == find_checkpoint(tmp_path, "last") == first
    assert load_checkpoint(tmp_path, policy, optimizer) == state


def test_old_checkpoints_go_but_never_the_best_or_the_last(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    policy = load_policy(make_config())
    optimizer = torch.optim.AdamW(list(policy.trained.values()))
    for iteration in range(5):
        save_checkpoint(tmp_path, RunState(iteration=iteration), policy, optimizer, keep=2, best=iteration == 1)
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").glob("step-*")) == [
        "step-000001",
        "step-000003",
        "step-000004",
    ]


def test_checkpoint_that_was_never_pointed_at_is_dropped_on_resume(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    policy = load_policy(make_config())
    optimizer = torch.optim.AdamW(list(policy.trained.values()))
    save_checkpoint(tmp_path, RunState(iteration=1), policy, optimizer, keep=2)
    newer = save_checkpoint(tmp_path, RunState(iteration=2), policy, optimizer, keep=2)
    (tmp_path / "checkpoints" / "last.txt").write_text("step-000001\n")
    assert load_checkpoint(tmp_path, policy, optimizer).iteration == 1
    assert not newer.exists()


def test_broken_weights_are_named(tmp_path: Path, make_config: Callable[..., Config]) -> None:
    policy = load_policy(make_config())
    optimizer = torch.optim.AdamW(list(policy.trained.values()))
    folder = save_checkpoint(tmp_path, RunState(), policy, optimizer, keep=1)
    (folder / "trained.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"trained\.safetensors"):
        load_checkpoint(tmp_path, policy, optimizer)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "gpu"}, ConfigError, "model.device"),
        ({"device": "cuda"}, ConfigError, "no CUDA device"),
        ({"height": 33}, ConfigError, "nearest: 32 or 40"),
        ({"attention": "nonsense"}, ConfigError, "model.attention"),
    ],
)
def test_model_settings_that_cannot_be_are_told(
    options: dict[str, object], error: type[Exception], words: str, tiny_folder: Path
) -> None:
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(error, match=words):
        load_model(str(tiny_folder), **{"height": 16, "width": 32, **options})


def test_folders_that_are_no_models_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a bundled model"):
        load_model(str(tmp_path), height=16, width=32)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ModelError, match="StableDiffusionPipeline"):
        load_model(str(tmp_path), height=16, width=32)
