"""The result of a run as a folder that diffusers loads, with no line of ours involved."""

import json
import shutil
from pathlib import Path

import torch

import mixgrpo
from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.config.sections import NftLossConfig
from mixgrpo.errors import CheckpointError, ConfigError
from mixgrpo.models import FlowModel, load_model
from mixgrpo.train.checkpoint import Which, find_checkpoint, load_weights
from mixgrpo.train.policy import Policy

_MARKER = "mixgrpo.json"
"""Says of a folder that we wrote it, and from what."""


def load_run_config(run: Path) -> Config:
    """Read the config that a run was started with.

    Raises:
        CheckpointError: if the folder is no run.
    """
    resolved = run / "resolved.json"
    if not resolved.is_file():
        raise CheckpointError(f"{run} is not the folder of a run: it has no resolved.json")
    return load_config(resolved)


def load_policy(config: Config, *, for_training: bool = True) -> Policy:
    """Load the starting model of a config and make it trainable as a run does.

    To draw only, it is loaded without copies of its weights, and with text encoders even if there is a prompt cache.
    """
    return Policy(
        load_model(config.model.path, **config.model.arguments(drawing=not for_training)),
        config.lora,
        seed=config.seed,
        with_reference=for_training and config.loss.kl_weight > 0,
        ema_decay=config.optim.ema_decay if for_training else 0.0,
        lags=for_training and isinstance(config.loss, NftLossConfig) and config.loss.old_decay_rate > 0.0,
    )


def load_run_model(run: Path, which: Which = "best", *, config: Config | None = None) -> FlowModel:
    """Load the model of a run with the trained weights of a checkpoint, their average where the run keeps one.

    `config` is the run's own, perhaps with another image size.

    Raises:
        CheckpointError: if the folder is no run, or has no such checkpoint.
    """
    config = config or load_run_config(run)
    checkpoint = find_checkpoint(run, which)
    policy = load_policy(config, for_training=False)
    _load_result(checkpoint, config, policy)
    return policy.model


def export_run(run: Path, output: Path, *, which: Which = "best", policy: Policy | None = None) -> Path:
    """Write the model of a run as a pipeline folder; with LoRA, merged, and the adapter alone in `output/lora`.

    `policy` is one that is at hand and no longer needed: its weights are overwritten. The folder appears when it is
    complete, and only then replaces an earlier export.

    Raises:
        ConfigError: if `output` is there already and is not an earlier export.
        CheckpointError: if the folder is no run, or has no such checkpoint.
    """
    if output.exists() and any(output.iterdir()) and not (output / _MARKER).is_file():
        raise ConfigError(f"{output} exists and is not an earlier export (no {_MARKER}); choose another folder")
    config, checkpoint = load_run_config(run), find_checkpoint(run, which)
    if policy is None:  # on the CPU, for a run that is just over may still have the GPU
        on_cpu = config.model.model_copy(update={"device": "cpu"})
        policy = load_policy(config.model_copy(update={"model": on_cpu}), for_training=False)
    _load_result(checkpoint, config, policy)
    writing = output.with_name(f".{output.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    if policy.uses_lora:
        policy.model.save_lora(writing / "lora")
        policy.model.transformer.fuse_lora()  # pyright: ignore[reportCallIssue]
        policy.model.transformer.unload_lora()  # pyright: ignore[reportCallIssue]
    policy.model.save(writing)
    origin = {"version": mixgrpo.__version__, "base": config.model.path, "run": config.name, "step": checkpoint.name}
    (writing / _MARKER).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    if output.exists():
        shutil.rmtree(output)
    writing.rename(output)
    return output


@torch.no_grad()
def _load_result(checkpoint: Path, config: Config, policy: Policy) -> None:
    """Put a run's result into `policy`, in the types that the model came in."""
    policy.load(load_weights(checkpoint, averaged=config.optim.ema_decay > 0))
    policy.restore_types()
