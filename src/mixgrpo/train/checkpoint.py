"""Checkpoints: written whole or not at all, read without pickle.

`checkpoints/step-000025/` holds `trained.safetensors` (full weights or adapters, float32), `average.safetensors` if
there is a moving average, `lagging.safetensors` if the sampling policy lags behind, `optimizer.safetensors` and
`state.json`. `last.txt` and `best.txt` beside it name a folder.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixgrpo.errors import CheckpointError
from mixgrpo.train.policy import Policy
from mixgrpo.train.state import RunState

Which = Literal["last", "best"]


def save_checkpoint(
    run: Path,
    state: RunState,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    *,
    keep: int,
    best: bool = False,
) -> Path:
    """Write a checkpoint of `state.iteration`, point `last` (and `best`) at it, and remove what is no longer kept."""
    folder = run / "checkpoints" / f"step-{state.iteration:06d}"
    if folder.exists():  # of the same iteration, so of the same weights; only what is known of them may be new
        _write_state(folder, state)
    else:
        unfinished = folder.with_name(f".{folder.name}.writing")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        weights = {name: weight.detach().contiguous() for name, weight in policy.trained.items()}
        save_file(weights, unfinished / "trained.safetensors")
        if policy.average:
            save_file(policy.average, unfinished / "average.safetensors")
        if policy.lagging:
            save_file(policy.lagging, unfinished / "lagging.safetensors")
        save_file(_optimizer_tensors(policy, optimizer), unfinished / "optimizer.safetensors")
        _write_state(unfinished, state)
        unfinished.rename(folder)
    _point(run, "last", folder)
    if best:
        _point(run, "best", folder)
    _prune(run, keep)
    return folder


def load_checkpoint(run: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> RunState:
    """Put the last checkpoint of `run` into `policy` and `optimizer`, and return its state.

    Raises:
        CheckpointError: if there is none, it cannot be read, or it is of another model or adapter.
    """
    folder = find_checkpoint(run, "last")
    weights = load_weights(folder, averaged=False)
    _check_names(folder, weights, policy)
    policy.load(weights)
    for name, copies in (("average", policy.average), ("lagging", policy.lagging)):
        if copies:
            saved = _read(folder / f"{name}.safetensors")
            _check_names(folder, saved, policy)
            for key, copy in copies.items():
                copy.copy_(saved[key])
    _restore_optimizer(folder, policy, optimizer)
    try:
        state = RunState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError) as error:
        raise CheckpointError(f"{folder / 'state.json'} cannot be read: {error}") from error
    for other in (run / "checkpoints").glob("step-*"):
        if other.name > folder.name:  # written, but never pointed at, when the run died
            shutil.rmtree(other)
    return state


def find_checkpoint(run: Path, which: Which) -> Path:
    """Return the folder that `last` or `best` names.

    Raises:
        CheckpointError: if the run has no such checkpoint.
    """
    pointer = run / "checkpoints" / f"{which}.txt"
    if not pointer.is_file():
        raise CheckpointError(f"{run} has no {which} checkpoint ({pointer} is missing)")
    folder = pointer.parent / pointer.read_text(encoding="utf-8").strip()
    if not folder.is_dir():
        raise CheckpointError(f"{pointer} names {folder.name}, which is not there")
    return folder


def load_weights(folder: Path, *, averaged: bool) -> dict[str, Tensor]:
    """Read the trained weights of a checkpoint, or their moving average.

    Raises:
        CheckpointError: if the file is missing or broken.
    """
    return _read(folder / ("average.safetensors" if averaged else "trained.safetensors"))


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _check_names(folder: Path, weights: dict[str, Tensor], policy: Policy) -> None:
    wanted = {name: tuple(parameter.shape) for name, parameter in policy.trained.items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if wanted != found:
        name = next(iter(sorted(set(wanted.items()) ^ set(found.items()))))[0]
        raise CheckpointError(
            f"{folder} does not fit the model: the weight {name!r} is {found.get(name, 'missing')} there and "
            f"{wanted.get(name, 'missing')} here"
        )


def _optimizer_tensors(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as `weight name:state name` -> tensor."""
    return {
        f"{name}:{key}": torch.as_tensor(value).contiguous()
        for name, parameter in policy.trained.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    for entry, value in _read(folder / "optimizer.safetensors").items():
        name, _, key = entry.rpartition(":")
        parameter = policy.trained[name]
        optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)


def _write_state(folder: Path, state: RunState) -> None:
    writing = folder / "state.writing"
    writing.write_text(json.dumps(state.as_json(), indent=1), encoding="utf-8")
    os.replace(writing, folder / "state.json")


def _point(run: Path, which: Which, folder: Path) -> None:
    pointer = run / "checkpoints" / f"{which}.txt"
    writing = pointer.with_suffix(".writing")
    writing.write_text(folder.name + "\n", encoding="utf-8")
    os.replace(writing, pointer)


def _prune(run: Path, keep: int) -> None:
    pointers = (run / "checkpoints" / f"{which}.txt" for which in ("last", "best"))
    kept = {pointer.read_text(encoding="utf-8").strip() for pointer in pointers if pointer.exists()}
    folders = sorted((run / "checkpoints").glob("step-*"))
    for folder in folders[:-keep]:
        if folder.name not in kept:
            shutil.rmtree(folder)
