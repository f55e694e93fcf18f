"""The benchmarks' own reckoning; running them takes minutes and a quiet machine."""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mixgrpo.config.presets import methods
from mixgrpo.cost.calls import iteration_calls


def load(name: str) -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_operations_are_in_the_ratios_of_the_published_seconds() -> None:
    """DanceGRPO, MixGRPO and both Flash variants on FLUX.1-dev: operations alone are within 5 % of what was timed."""
    benchmark = load("published")
    _, seconds = benchmark.published()
    operations = benchmark.iteration_operations(benchmark.flux1_dev())
    assert operations / operations[0] == pytest.approx(seconds / seconds[0], rel=0.05)
    assert np.all(operations / seconds / benchmark.PEAK > 0.12)


@pytest.mark.parametrize("method", [*methods(), "unshared"])
def test_every_method_can_be_measured(method: str) -> None:
    benchmark = load("methods")
    arguments = argparse.Namespace(positions=3, prompts=4, settings=["--model.threads", "1"])
    config = benchmark.method_config(method, arguments)
    assert config.rollout.num_steps == (8 if method == "neighbor-grpo" else 25)
    assert (config.prompts_per_iteration, config.model.threads) == (4, 1)
    for position in range(3):
        assert iteration_calls(config, position).update
    if config.window.type == "sliding":
        starts = {benchmark_start(config, position) for position in range(3)}
        assert starts == {0, 10, 20}


def benchmark_start(config: object, position: int) -> int:
    from mixgrpo.train.settings import make_window

    return make_window(config).at(position).start
