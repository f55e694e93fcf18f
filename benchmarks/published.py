"""Hold the operations of FLUX.1-dev against the seconds that the paper publishes (arXiv 2507.21802, table 1).

    python benchmarks/published.py

The paper: 32 GPUs with one prompt each, 12 samples, T = 25, 720 x 720 pixels. Two unknowns explain its seconds: those
of a forward pass, and those of a forward and backward pass; least squares finds them. What a GPU reached follows from
the operations that the cost model counts. The paper does not name its GPUs; 989 TFLOP/s is an H800's dense bfloat16.
"""

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from mixgrpo.shapes import ImageSize, Shape, Training, read_shape

SAMPLES, PEAK = 12, 989e12
PUBLISHED = {
    "DanceGRPO": (25, 14, 291.284),
    "DanceGRPO, random 4": (25, 4, 149.978),
    "DanceGRPO, frozen 4": (25, 4, 150.059),
    "MixGRPO (SDE)": (25, 4, 150.839),
    "MixGRPO (CPS)": (25, 4, 149.326),
    "MixGRPO-Flash": (16, 4, 112.372),
    "MixGRPO-Flash*": (8, 4, 83.278),
}
"""Method -> forward passes per sample, forward and backward passes per sample, seconds per iteration."""


def flux1_dev() -> Shape:
    shape = read_shape("black-forest-labs/FLUX.1-dev", ImageSize(720, 720, 512))
    assert shape is not None
    return shape


def pass_operations(shape: Shape) -> np.ndarray:
    """Return the operations of a forward pass, and of a forward and backward pass with checkpointing."""
    forward = shape.transformer.forward()
    return np.array([forward, forward + shape.transformer.backward(Training(checkpointing=True))], dtype=float)


def published() -> tuple[np.ndarray, np.ndarray]:
    """Return the passes of each method's iteration on one GPU [methods, 2], and its seconds [methods]."""
    figures = np.array(list(PUBLISHED.values()))
    return figures[:, :2] * SAMPLES, figures[:, 2]


def iteration_operations(shape: Shape) -> np.ndarray:
    """Return the operations of each method's iteration on one GPU [methods]."""
    once = SAMPLES * shape.decoder.forward() + sum(network.forward() for network in shape.text_encoders)
    return published()[0] @ pass_operations(shape) + once


def main() -> None:
    shape = flux1_dev()
    (calls, seconds), operations = published(), iteration_operations(shape)
    passes, *_ = np.linalg.lstsq(calls, seconds, rcond=None)

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for heading in ("method", "calls", "s / it.", "ratio", "PFLOP", "ratio", "error", "TF/s"):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for index, (name, (sampled, trained, took)) in enumerate(PUBLISHED.items()):
        measured, counted = took / seconds[0], operations[index] / operations[0]
        table.add_row(
            name,
            f"{sampled} + {trained}",
            f"{took:.1f}",
            f"{measured:.3f}",
            f"{operations[index] / 1e15:.1f}",
            f"{counted:.3f}",
            f"{counted / measured - 1:+.1%}",
            f"{operations[index] / took / 1e12:.0f}",
        )
    console.print(table)
    for name, work, took in zip(("forward", "forward and backward"), pass_operations(shape), passes, strict=True):
        console.print(
            f"{name}: {took:.3f} s for {work / 1e12:.1f} TFLOP, {work / took / 1e12:.0f} TFLOP/s, "
            f"{work / took / PEAK:.1%} of 989"
        )
    residual = np.abs(calls @ passes / seconds - 1).max()
    console.print(f"The two figures give every row of the table within {residual:.1%}.")
    console.print(f"Weights in bfloat16 that FSDP gathers for a pass: {2 * shape.transformer.parameters / 1e9:.1f} GB.")


if __name__ == "__main__":
    main()
