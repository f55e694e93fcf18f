"""The training loop that the three stages of the recipe share.

A stage resumes by itself: its state (weights, moving average, optimiser, step) is saved every so often by an atomic
rename, and its data are a function of (seed, step), so a resumed stage equals an uninterrupted one bit for bit.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixgrpo.errors import CheckpointError, TrainingError

Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Length, learning rate and rhythm of a stage, in steps."""

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    schedule_steps: int = 0
    """Steps after which the learning rate would be at its floor; 0 means `num_steps`."""
    decay_steps: int = 0
    """Length of a linear decay at the end of a flat schedule; 0 means half a cosine from the start."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    num_shards: int = 1
    """Parts of a batch that are computed side by side, on one thread each; more than one needs `batch_size` to divide.

    Two shards on two threads are several times faster than one batch on two threads as soon as anything else runs on
    the machine, because they meet once a step and not once an operation.
    """
    ema_decay: float = 0.0
    """Decay of the moving average of the weights; 0 keeps none."""
    log_every: int = 50
    save_every: int = 500
    probe_every: int = 1000


@dataclass(kw_only=True)
class Stage:
    """What a stage trains, on which loss, and how it is judged.

    `loss(draw, size)` draws its own `size` pictures, a function of the number `draw`. `probe()` is called with the
    moving average in place, if there is one, and so is `export()`, which writes the stage's product.
    """

    name: str
    settings: StageSettings
    modules: nn.ModuleDict
    loss: Callable[[int, int], Tensor]
    probe: Callable[[], Metrics]
    export: Callable[[], None]
    seconds: float = field(default=0.0, init=False)
    """Time trained so far, resumed runs included."""


def make_optimizer(modules: nn.Module, settings: StageSettings) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only."""
    parameters = [p for p in modules.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


def learning_rate(step: int, settings: StageSettings) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine or a flat stretch and a line, down to 2 %."""
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    end = settings.schedule_steps or settings.num_steps
    if settings.decay_steps:
        left = min(1.0, (end - step) / settings.decay_steps)
    else:
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, step / end)))
    return settings.learning_rate * warmup * (0.02 + 0.98 * left)


def run_stage(stage: Stage, output: Path, *, stop_after: int | None = None) -> None:
    """Train a stage to its end, or up to step `stop_after`, from wherever its last run stopped.

    Writes `<output>/<name>.pt` (state), `<output>/<name>.jsonl` (log) and, at each probe, the stage's export.
    """
    output.mkdir(parents=True, exist_ok=True)
    settings = stage.settings
    optimizer = make_optimizer(stage.modules, settings)
    average = _copy_weights(stage.modules) if settings.ema_decay else None
    start = _load_state(stage, output, optimizer, average)
    log = output / f"{stage.name}.jsonl"
    _cut_log(log, start)
    end = min(settings.num_steps, settings.num_steps if stop_after is None else stop_after)
    print(f"{stage.name}: steps {start} to {end} of {settings.num_steps}, state in {output}", flush=True)
    losses: list[float] = []
    clock = time.perf_counter()
    for step in range(start, end):
        losses.append(_train_step(stage, step, optimizer, average))
        done = step + 1
        stage.seconds += time.perf_counter() - clock
        clock = time.perf_counter()
        is_last = done == end
        if done % settings.log_every == 0 or is_last:
            metrics = {"loss": sum(losses) / len(losses), "lr": learning_rate(step, settings)}
            _report(stage, log, done, metrics)
            losses.clear()
        if done % settings.probe_every == 0 or is_last:
            _probe(stage, log, done, average)
        if done % settings.save_every == 0 or is_last:
            _save_state(stage, output, optimizer, average, done)


def _train_step(stage: Stage, step: int, optimizer: torch.optim.Optimizer, average: dict[str, Tensor] | None) -> float:
    settings = stage.settings
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, settings)
    loss = _compute_gradients(stage, step)
    if not math.isfinite(loss):
        raise TrainingError(f"stage {stage.name}: the loss of step {step} is {loss}; lower the learning rate")
    nn.utils.clip_grad_norm_(stage.modules.parameters(), settings.max_grad_norm)
    optimizer.step()
    if average is not None:
        _update_average(average, stage.modules, min(settings.ema_decay, (1 + step) / (10 + step)))
    return loss


def _compute_gradients(stage: Stage, step: int) -> float:
    """Put the gradients of one step in place and return its loss, the mean over the shards.

    The shards are added in their order, so the sum does not depend on which thread was first.
    """
    num_shards = stage.settings.num_shards
    parameters = [p for p in stage.modules.parameters() if p.requires_grad]

    def compute(shard: int) -> tuple[float, tuple[Tensor | None, ...]]:
        loss = stage.loss(step * num_shards + shard, stage.settings.batch_size // num_shards)
        return loss.item(), torch.autograd.grad(loss, parameters, allow_unused=True)

    apply = map if num_shards == 1 else make_workers(num_shards).map
    results = list(apply(compute, range(num_shards)))
    for parameter, *gradients in zip(parameters, *(gradients for _, gradients in results), strict=True):
        used = [gradient for gradient in gradients if gradient is not None]
        parameter.grad = reduce(torch.Tensor.add_, used).div_(num_shards) if used else None
    return sum(loss for loss, _ in results) / num_shards


@cache
def make_workers(count: int) -> ThreadPoolExecutor:
    """Return `count` threads, each of which lets torch use no other thread."""
    torch.set_num_threads(1)
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def _weights(modules: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return ((name, parameter.data) for name, parameter in modules.named_parameters())


def _copy_weights(modules: nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in _weights(modules)}


def _update_average(average: dict[str, Tensor], modules: nn.Module, decay: float) -> None:
    names = [name for name, _ in _weights(modules)]
    torch._foreach_lerp_([average[name] for name in names], [w for _, w in _weights(modules)], 1 - decay)


def _probe(stage: Stage, log: Path, step: int, average: dict[str, Tensor] | None) -> None:
    """Judge and export the stage, with the averaged weights if there are any, then put the trained ones back."""
    trained = _copy_weights(stage.modules) if average is not None else None
    if average is not None:
        _put_weights(stage.modules, average)
    stage.modules.eval()
    with torch.no_grad():
        metrics = stage.probe()
        stage.export()
    stage.modules.train()
    if trained is not None:
        _put_weights(stage.modules, trained)
    _report(stage, log, step, metrics)


def _put_weights(modules: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, weight in _weights(modules):
        weight.copy_(weights[name])


def _report(stage: Stage, log: Path, step: int, metrics: Metrics) -> None:
    seconds = round(stage.seconds, 1)
    with log.open("a", encoding="utf-8") as file:
        rounded = {key: float(f"{value:.5g}") for key, value in metrics.items()}
        file.write(json.dumps({"stage": stage.name, "step": step, "seconds": seconds, **rounded}) + "\n")
    left = seconds / step * (stage.settings.num_steps - step)
    speed = step * stage.settings.batch_size / max(seconds, 1e-9)
    figures = "  ".join(f"{key} {value:.4g}" for key, value in metrics.items())
    place = f"{stage.name} {step}/{stage.settings.num_steps}"
    print(f"{place}  {figures}  {speed:.0f} pictures/s  {left / 60:.1f} min left", flush=True)


def _cut_log(log: Path, step: int) -> None:
    """Drop the lines written after the saved state, which will be written again."""
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    log.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")


def _save_state(
    stage: Stage,
    output: Path,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None,
    step: int,
) -> None:
    state = {
        "step": step,
        "num_steps": stage.settings.num_steps,
        "seconds": stage.seconds,
        "weights": stage.modules.state_dict(),
        "average": average,
        "optimizer": optimizer.state_dict(),
    }
    path = output / f"{stage.name}.pt"
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _load_state(stage: Stage, output: Path, optimizer: torch.optim.Optimizer, average: dict[str, Tensor] | None) -> int:
    """Load the saved state in place, if there is one, and return the step to go on from."""
    path = output / f"{stage.name}.pt"
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["num_steps"] != stage.settings.num_steps:
        raise CheckpointError(
            f"{path} is of a run of {state['num_steps']} steps, this one has {stage.settings.num_steps}: "
            "choose another --output, or delete the file"
        )
    stage.modules.load_state_dict(state["weights"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        for name, weight in average.items():
            weight.copy_(state["average"][name])
    stage.seconds = state["seconds"]
    return int(state["step"])
