"""The benchmarks' own reckoning; running them takes minutes and a quiet machine."""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mixgrpo.config.presets import methods
from mixgrpo.config.schema import Config
from mixgrpo.cost.calls import iteration_calls
from mixgrpo.rl.window import trained_steps
from mixgrpo.train.settings import make_window


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


@pytest.mark.parametrize(
    ("method", "trained", "tail"),
    [
        ("dancegrpo", 14, 1.0),
        ("dancegrpo-random", 4, 1.0),
        ("dancegrpo-frozen", 4, 1.0),
        ("mixgrpo", 4, 1.0),
        ("mixgrpo-frozen", 4, 1.0),
        ("mixgrpo-flash", 4, 0.4),
        ("mixgrpo-flash-star", 4, 0.2),
    ],
)
def test_the_papers_methods_are_timed_with_its_settings(method: str, trained: int, tail: float) -> None:
    arguments = argparse.Namespace(positions=3, prompts=4, settings=[])
    config = load("methods").method_config(method, arguments)
    assert len(trained_steps(make_window(config), 1)) == trained
    assert config.rollout.tail_ratio == tail


def benchmark_start(config: Config, position: int) -> int:
    return make_window(config).at(position).start
