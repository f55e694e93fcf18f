"""What makes a method survives in every model's preset: no setting of a model turns it into another method."""

import pytest

from mixgrpo.config.load import load_config
from mixgrpo.config.presets import model_names
from mixgrpo.config.schema import Config
from mixgrpo.train.settings import make_window

EVERY_MODEL = pytest.mark.parametrize("model", model_names())

WITHOUT_DIVERGENCE = (
    "dancegrpo", "dancegrpo-random", "dancegrpo-frozen", "flow-dppo", "grpo-guard", "neighbor-grpo", "flow-grpo-fast",
)  # fmt: skip
"""Methods whose papers, or settings for this comparison, have no divergence to the starting model."""


def windows(config: Config) -> list[range]:
    """The stochastic steps of every iteration of the run."""
    window = make_window(config)
    return [window.at(iteration) for iteration in range(config.iterations)]


@EVERY_MODEL
@pytest.mark.parametrize("method", ["frozen", "random", "linear-decay", "exp-decay"])
def test_a_window_strategy_visits_other_windows_than_the_sliding_one(model: str, method: str) -> None:
    sliding, other = load_config(model), load_config(f"{model}-mixgrpo-{method}")
    assert other.rollout == sliding.rollout
    assert windows(other) != windows(sliding)


@EVERY_MODEL
def test_an_exponentially_decaying_window_comes_to_its_last_place(model: str) -> None:
    config = load_config(f"{model}-mixgrpo-exp-decay")
    visited = windows(config)
    last = config.rollout.num_steps - 1  # the step that lands on the picture, which is never stochastic
    assert max(window.stop for window in visited) == last
    assert {window.start for window in visited} == set(range(last - len(visited[0]) + 1))
    stays = [sum(window.start == start for window in visited) for start in range(last - len(visited[0]) + 1)]
    assert stays[-1] < stays[0], "it has not decayed"


@EVERY_MODEL
def test_the_extremes_are_not_the_whole_group(model: str) -> None:
    config = load_config(f"{model}-mixgrpo-extremes")
    assert 0 < 2 * config.advantages.extremes < config.rollout.group_size


@EVERY_MODEL
@pytest.mark.parametrize("method", WITHOUT_DIVERGENCE)
def test_methods_without_a_divergence_have_none(model: str, method: str) -> None:
    assert load_config(f"{model}-{method}").loss.kl_weight == 0.0


@EVERY_MODEL
@pytest.mark.parametrize("method", ["flow-dppo", "flow-grpo-fast"])
def test_branches_are_within_the_first_half(model: str, method: str) -> None:
    config = load_config(f"{model}-{method}")
    assert max(window.stop for window in windows(config)) <= config.rollout.num_steps / 2
