"""What an iteration takes on GPUs that nobody has measured, under assumptions that a reader can see. No torch."""

from dataclasses import dataclass

from mixgrpo.config.schema import Config
from mixgrpo.cost.memory import config_of_rank, estimate_memory
from mixgrpo.cost.operations import iteration_operations
from mixgrpo.shapes import Shape
from mixgrpo.train.settings import Cost

COUNTS = (1, 8, 32)
"""Numbers of GPUs that a plan is made for: one, a machine of eight, and the paper's."""

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """What is assumed of every GPU. The defaults are those of an H100 or H800."""

    tflops: float = 989.0
    """Peak of dense bfloat16 products in 10^12 operations a second."""
    utilisation: float = 0.4
    """Share of the peak that is reached, forwards and backwards."""
    memory: float = 80.0
    """GiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One GPU's part in a run on several."""

    gpus: int
    prompts: int
    """Of an iteration, on the busiest GPU."""
    rank: int
    """Of the adapters; 0: every weight is trained."""
    operations: float
    """Of an iteration."""
    seconds: float
    """Of an iteration."""
    hours: float
    """Of the run, without evaluation and saving."""
    gib: float
    """Memory at the peak."""


def forecast(config: Config, shape: Shape, cost: Cost, *, gpu: Gpu, adapter_rank: int = 32) -> tuple[Share, ...]:
    """Return each GPU's part for all `COUNTS`, with every weight trained and with adapters.

    The adapters are the config's, or of `adapter_rank` if it has none. Prompts are shared out evenly, and nothing but
    operations takes time: no communication, no rewards.
    """
    shares = []
    for count in COUNTS:
        for rank in (0, config.lora.rank or adapter_rank):
            lora = config.lora.model_copy(update={"rank": rank})
            mine = config_of_rank(config.model_copy(update={"lora": lora}), count)
            operations = iteration_operations(mine, cost, shape).total
            seconds = operations / (gpu.tflops * 1e12 * gpu.utilisation)
            memory = estimate_memory(config.model_copy(update={"lora": lora}), shape, ranks=count)
            shares.append(
                Share(
                    gpus=count,
                    prompts=mine.prompts_per_iteration,
                    rank=rank,
                    operations=operations,
                    seconds=seconds,
                    hours=config.iterations * seconds / 3600.0,
                    gib=memory.peak / GIB,
                )
            )
    return tuple(shares)


def fits(share: Share, memory: float) -> str:
    """Return whether a GPU of `memory` GiB is enough: yes, barely (over 90 %), or no."""
    if share.gib > memory:
        return "no"
    return "yes" if share.gib <= 0.9 * memory else "barely"
