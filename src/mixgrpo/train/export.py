"""The result of a run as a folder that diffusers loads, with no line of ours involved."""

import shutil
from pathlib import Path

import torch

from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.errors import CheckpointError, ConfigError
from mixgrpo.models import FlowModel, load_model
from mixgrpo.train.checkpoint import Which, find_checkpoint, load_weights
from mixgrpo.train.policy import Policy


def load_run_config(run: Path) -> Config:
    """Read the config that a run was started with.

    Raises:
        CheckpointError: if the folder is no run.
    """
    resolved = run / "resolved.json"
    if not resolved.is_file():
        raise CheckpointError(f"{run} is not the folder of a run: it has no resolved.json")
    return load_config(resolved)


def load_policy(config: Config) -> Policy:
    """Load the starting model of a config and make it trainable, as a run does."""
    return Policy(
        load_model(config.model.path, **config.model.model_dump(exclude={"path", "threads"})),
        config.lora,
        seed=config.seed,
        with_reference=config.loss.kl_weight > 0,
        ema_decay=config.optim.ema_decay,
    )


def load_run_model(run: Path, which: Which = "best") -> FlowModel:
    """Load the model of a run with the trained weights of a checkpoint, their average where the run keeps one.

    Raises:
        CheckpointError: if the folder is no run, or has no such checkpoint.
    """
    policy = load_policy(load_run_config(run))
    _load_result(run, which, policy)
    return policy.model


def export_run(run: Path, output: Path, *, which: Which = "best", policy: Policy | None = None) -> Path:
    """Write the model of a run as a pipeline folder; with LoRA, merged, and the adapter alone in `output/lora`.

    `policy` is one that is at hand and no longer needed: its weights are overwritten.

    Raises:
        ConfigError: if `output` is there already and is not an earlier export.
        CheckpointError: if the folder is no run, or has no such checkpoint.
    """
    if output.exists() and any(output.iterdir()):
        if not (output / "model_index.json").is_file():
            raise ConfigError(f"{output} exists and is not an earlier export; choose another folder")
        shutil.rmtree(output)
    policy = policy or load_policy(load_run_config(run))
    _load_result(run, which, policy)
    if policy.uses_lora:
        policy.model.save_lora(output / "lora")
        policy.model.transformer.fuse_lora()  # pyright: ignore[reportCallIssue]
        policy.model.transformer.unload_lora()  # pyright: ignore[reportCallIssue]
    policy.model.save(output)
    return output


@torch.no_grad()
def _load_result(run: Path, which: Which, policy: Policy) -> None:
    folder = find_checkpoint(run, which)
    policy.load(load_weights(folder, averaged=bool(policy.average)))
