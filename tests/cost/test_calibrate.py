"""A calibration measures the sizes that iterations make, and draws lines through the medians."""

import itertools
from collections.abc import Callable

import pytest

from mixgrpo.config.schema import Config
from mixgrpo.cost.calibrate import calibrate
from mixgrpo.cost.seconds import Speeds, predict_mean


def test_speeds_come_from_the_sizes_of_the_run(make_config: Callable[..., Config]) -> None:
    """With a clock that ticks once a call, every call takes one second, whatever its size."""
    ticks = itertools.count()
    speeds = calibrate(make_config(), seconds=0.0, clock=lambda: float(next(ticks)))
    for line, small, large in ((speeds.forward, 2, 8), (speeds.update, 2, 8)):
        assert (line.at(small), line.at(large)) == (pytest.approx(1.0), pytest.approx(1.0))
    assert speeds.step == pytest.approx(1.0)
    assert speeds.encode.at(2) == pytest.approx(1.0)


def test_a_real_clock_gives_a_prediction(make_config: Callable[..., Config]) -> None:
    config = make_config(rewards=[{"name": "brightness"}])
    speeds = calibrate(config, seconds=0.0)
    assert isinstance(speeds, Speeds)
    assert speeds.update.at(8) > speeds.forward.at(8) > 0.0
    assert 0.0 < predict_mean(config, speeds).total < 60.0
