"""The result of a run as a folder that diffusers loads, with no line of ours involved, and with a model card."""

import shutil
from pathlib import Path

import torch

import mixgrpo
from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.config.sections import NftLossConfig
from mixgrpo.errors import CheckpointError, ConfigError
from mixgrpo.models import FlowModel, load_model
from mixgrpo.models.registry import SECOND_LORA_FILE
from mixgrpo.report.card import write_card
from mixgrpo.report.exported import MARKER, Exported, write_marker
from mixgrpo.train.checkpoint import Which, find_checkpoint, load_weights
from mixgrpo.train.policy import Policy

COMFYUI_FILE = "comfyui_lora.safetensors"
"""The adapter as ComfyUI reads it, beside the file for diffusers."""


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
        offload=config.model.offload,
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


def export_run(
    run: Path,
    output: Path,
    *,
    which: Which = "best",
    merge: bool = False,
    policy: Policy | None = None,
    hub_id: str = "",
) -> Path:
    """Write the result of a run with its model card: a pipeline folder, or of a run with LoRA the adapter alone.

    With `merge`, an adapter is merged into a whole pipeline, and also written alone in `output/lora`. The folder
    appears when it is complete, and only then replaces an earlier export.

    Args:
        run: folder of the run.
        output: folder to write.
        which: the checkpoint to take.
        merge: whether an adapter is merged.
        policy: one that is at hand and no longer needed: its weights are overwritten. Not quantised if merged.
        hub_id: what the export will be called on the hub, for its card.

    Raises:
        ConfigError: if `output` is there already and is not an earlier export, or there is no adapter to merge.
        CheckpointError: if the folder is no run, or has no such checkpoint.
    """
    if output.exists() and any(output.iterdir()) and not (output / MARKER).is_file():
        raise ConfigError(f"{output} exists and is not an earlier export (no {MARKER}); choose another folder")
    config, checkpoint = load_run_config(run), find_checkpoint(run, which)
    if merge and not config.lora.rank:
        raise ConfigError(f"--merge has nothing to do: {run} trained all weights, which are exported as a pipeline")
    if policy is None:
        policy = _policy_on_cpu(config)
    _load_result(checkpoint, config, policy)
    writing = output.with_name(f".{output.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    is_adapter = policy.uses_lora and not merge
    no_comfyui = _save_adapter(policy, writing if is_adapter else writing / "lora") if policy.uses_lora else ""
    if not is_adapter:
        _save_pipeline(policy, writing)
    exported = Exported(
        version=mixgrpo.__version__,
        base=config.model.path,
        run=config.name,
        step=checkpoint.name,
        is_adapter=is_adapter,
        pipeline=policy.model.pipeline_class,
        dtype=config.model.dtype,
        float32_parts=policy.model.float32_parts,
        call={**policy.model.call_arguments(), "num_inference_steps": config.eval.num_steps},
        second_adapter=SECOND_LORA_FILE if (writing / SECOND_LORA_FILE).is_file() else "",
        has_comfyui=policy.uses_lora and not no_comfyui,
        no_comfyui=no_comfyui,
    )
    write_marker(exported, writing)
    write_card(run, writing, exported, where=hub_id or output.name, base_folder=policy.model.source)
    return _replace(output, writing)


def _replace(output: Path, writing: Path) -> Path:
    """Put the folder `writing` in the place of `output`, and return that."""
    if output.exists():
        shutil.rmtree(output)
    writing.rename(output)
    return output


def _policy_on_cpu(config: Config) -> Policy:
    """Load the policy of a run that is just over and may still have the GPU.

    Its weights are whole: a merged pipeline needs them, and 4-bit ones cannot be loaded on a CPU.
    """
    whole = config.model.model_copy(update={"device": "cpu", "quantize": "off"})
    return load_policy(config.model_copy(update={"model": whole}), for_training=False)


def _save_adapter(policy: Policy, folder: Path) -> str:
    """Write the adapter in both formats; returns why there is none for ComfyUI, or ""."""
    policy.model.save_lora(folder)
    return policy.model.save_comfyui_lora(folder / COMFYUI_FILE)


def _save_pipeline(policy: Policy, folder: Path) -> None:
    if policy.uses_lora:
        policy.model.transformer.fuse_lora()  # pyright: ignore[reportCallIssue]
        policy.model.transformer.unload_lora()  # pyright: ignore[reportCallIssue]
    policy.model.save(folder)


@torch.no_grad()
def _load_result(checkpoint: Path, config: Config, policy: Policy) -> None:
    """Put a run's result into `policy`, in the types that the model came in."""
    policy.load(load_weights(checkpoint, averaged=config.optim.ema_decay > 0))
    policy.restore_types()
