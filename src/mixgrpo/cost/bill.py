"""Everything that can be said of a run's cost before anything is loaded. No torch."""

from dataclasses import asdict, dataclass

from mixgrpo.config.schema import Config
from mixgrpo.cost.gpus import Gpu, Share, forecast
from mixgrpo.cost.memory import Memory, estimate_memory
from mixgrpo.cost.operations import Operations, iteration_operations, shape_of, training_of
from mixgrpo.shapes import Shape, Training
from mixgrpo.train.settings import Cost, dancegrpo_cost, mean_cost


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelBill:
    """What the model's size decides."""

    shape: Shape
    training: Training
    operations: dict[str, Operations]
    """Of an iteration, by the names of `Bill.costs`."""
    memory: Memory
    """Of one process."""
    gpu: Gpu
    shares: tuple[Share, ...]
    """What GPUs like `gpu` would do; empty for a model that needs none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """What an iteration costs, as a mean over the run."""

    costs: dict[str, Cost]
    """Model calls per sample: of DanceGRPO with as many steps, and of this run without and with what a group shares."""
    used: str
    """Which of them is that of the run as it is set."""
    model: ModelBill | None
    """None if it is not known how large the model is."""


def make_bill(config: Config, gpu: Gpu, *, with_gpus: bool) -> Bill:
    """Reckon what a run costs; `with_gpus`: on GPUs like `gpu` as well, and memory as on one."""
    costs = {
        "DanceGRPO": dancegrpo_cost(config.rollout.num_steps),
        "unshared": mean_cost(config, shared=False),
    }
    if config.rollout.noise_spread == 0.0:
        costs["shared"] = mean_cost(config, shared=True)
    used = "shared" if config.rollout.share_trunk and "shared" in costs else "unshared"
    return Bill(costs=costs, used=used, model=_model_bill(config, costs, used=used, gpu=gpu if with_gpus else None))


def _model_bill(config: Config, costs: dict[str, Cost], *, used: str, gpu: Gpu | None) -> ModelBill | None:
    shape = shape_of(config.model)
    if shape is None:
        return None
    return ModelBill(
        shape=shape,
        training=training_of(config.model, config.lora, shape),
        operations={name: iteration_operations(config, cost, shape) for name, cost in costs.items()},
        memory=estimate_memory(config, shape, cuda=gpu is not None),
        gpu=gpu or Gpu(),
        shares=forecast(config, shape, costs[used], gpu=gpu) if gpu else (),
    )


def bill_figures(bill: Bill) -> dict[str, object]:
    """Return the bill as plain values; shares of DanceGRPO's are of what it takes with as many steps as this run."""
    base = bill.costs["DanceGRPO"].forwards
    figures: dict[str, object] = {
        "calls_per_sample": {name: {**asdict(cost), "forwards": cost.forwards} for name, cost in bill.costs.items()},
        "share_of_dancegrpo": {name: cost.forwards / base for name, cost in bill.costs.items()},
    }
    if bill.model is not None:
        figures |= _model_figures(bill.model)
    return figures


def _model_figures(model: ModelBill) -> dict[str, object]:
    network, base = model.shape.transformer, model.operations["DanceGRPO"].total
    return {
        "model": {
            "source": model.shape.source,
            "parameters": model.shape.parameters,
            "trained_parameters": model.shape.trained_parameters(model.training),
            "tokens": model.shape.tokens,
            "passes_per_call": model.shape.passes,
            "forward_operations": network.forward(model.training),
            "backward_operations": network.backward(model.training),
            "decoding_operations": model.shape.decoder.forward(),
        },
        "operations_per_iteration": {
            name: {**asdict(each), "total": each.total, "of_dancegrpo": each.total / base}
            for name, each in model.operations.items()
        },
        "memory_bytes": {**asdict(model.memory), "peak": model.memory.peak},
        "gpu": asdict(model.gpu),
        "gpus": [asdict(share) for share in model.shares],
    }
