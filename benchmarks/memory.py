"""Measure how much memory an iteration takes in a fresh process, beside what the cost model predicts. Linux only.

    python benchmarks/memory.py flux-nano -- --loss.micro-batch 20

The first iteration fills gradients and optimiser state and loads what libraries load late; the growth of the resident
memory from there to the peak of the second iteration is what is compared: activations, samples and images. On a GPU
the same figures come from torch's allocator. Freed memory is given back at once here, which the C library's allocator
does not do by itself: MALLOC_MMAP_THRESHOLD_=65536.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.cost.memory import estimate_memory
from mixgrpo.cost.operations import shape_of
from mixgrpo.train.loop import Trainer
from mixgrpo.train.memory import peak_memory_bytes, reset_peak_memory

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def measure(config: Config) -> dict[str, float]:
    """Run two iterations and return bytes: before, at the peak, and the growth that is predicted for the second."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder) / "run", resume=False, sinks=[])
        device = trainer.policy.model.device
        loaded = reset_peak_memory(device)
        trainer.iterate(0)
        before = reset_peak_memory(device)
        trainer.iterate(1)
        peak = peak_memory_bytes(device)
        trainer.close()
    shape = shape_of(config.model)
    if loaded is None or before is None or shape is None:
        sys.exit("this needs Linux or a GPU, and a model whose shape is known")
    memory = estimate_memory(config, shape, cuda=device.type == "cuda")
    return {
        "loaded": loaded,
        "before": before,
        "peak": peak,
        "measured": peak - before,
        "predicted": max(memory.phases.values()) + memory.resident["trajectories"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--json", action="store_true", help="print the bytes as JSON")
    parser.add_argument("settings", nargs="*", help="further settings, after --")
    arguments = parser.parse_args()
    if not GIVE_BACK.items() <= os.environ.items():  # read by the C library when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | GIVE_BACK)
    figures = measure(load_config(arguments.preset, arguments.settings))
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in figures.items()))


if __name__ == "__main__":
    main()
