"""The time of an iteration from a machine's speeds, by hand."""

from collections import Counter

import pytest

from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.cost.seconds import Line, Speeds, predict, predict_mean

SPEEDS = Speeds(
    forward=Line(fixed=0.1, each=0.01),
    update=Line(fixed=0.2, each=0.04),
    decode=Line(fixed=0.0, each=0.02),
    score=Line(fixed=0.5, each=0.1),
    encode=Line(fixed=0.0, each=0.001),
    step=0.3,
)


def nano(*args: str) -> Config:
    """T = 25, w = 4, 4 prompts of 12 samples in one chunk of 48."""
    fixed = ("--rollout.num-steps", "25", "--window.size", "4", "--prompts-per-iteration", "4")
    return load_config("flux-nano", [*fixed, *args])


def test_a_line_is_summed_over_batches() -> None:
    assert Line(fixed=1.0, each=0.5).of(Counter({4: 2, 10: 1})) == pytest.approx(2 * 3.0 + 6.0)


def test_an_iteration_is_the_sum_of_its_calls() -> None:
    seconds = predict(nano(), SPEEDS, 0)
    assert seconds.sampling == pytest.approx(1 * (0.1 + 0.04) + 24 * (0.1 + 0.48))
    assert seconds.updating == pytest.approx(1 * (0.2 + 0.16) + 3 * (0.2 + 48 * 0.04))
    assert seconds.decoding == pytest.approx(48 * 0.02)
    assert seconds.waiting == pytest.approx(0.5 + 48 * 0.1)
    assert seconds.encoding == pytest.approx(4 * 0.001)
    assert (seconds.stepping, seconds.old, seconds.reference) == (0.3, 0.0, 0.0)
    parts = (seconds.sampling, seconds.updating, seconds.decoding, seconds.waiting, seconds.encoding, 0.3)
    assert seconds.total == pytest.approx(sum(parts))


def test_scores_of_all_chunks_but_the_last_are_hidden_by_sampling() -> None:
    two_chunks = nano("--rollout.micro-batch", "24")
    assert predict(two_chunks, SPEEDS, 0).waiting == pytest.approx(0.5 + 24 * 0.1)
    slow = Speeds(**{**_fields(SPEEDS), "score": Line(fixed=0.0, each=1.0)})
    seconds = predict(two_chunks, slow, 0)
    sampled = (seconds.sampling + seconds.decoding) / 2
    assert seconds.waiting == pytest.approx(sampled + 24.0 + 24.0 - 2 * sampled)


def test_the_mean_over_a_run_weighs_the_windows_places() -> None:
    config = nano("--iterations", "3", "--window.interval", "2", "--window.stride", "10", "--optim.warmup", "0")
    early, late = predict(config, SPEEDS, 0), predict(config, SPEEDS, 2)
    assert late.sampling < early.sampling
    assert predict_mean(config, SPEEDS).sampling == pytest.approx((2 * early.sampling + late.sampling) / 3)


def test_later_updates_pay_for_the_sampling_policy() -> None:
    seconds = predict(nano("--loss.updates-per-iteration", "4"), SPEEDS, 0)
    assert seconds.stepping == pytest.approx(4 * 0.3)
    assert seconds.old == pytest.approx(3 * (0.1 + 0.04) + 9 * (0.1 + 0.12))


def _fields(speeds: Speeds) -> dict[str, object]:
    return {name: getattr(speeds, name) for name in ("forward", "update", "decode", "score", "encode", "step")}
