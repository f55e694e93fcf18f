"""Deterministic tests: one torch thread, fixed seeds, a hypothesis that draws the same examples every time."""

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ["tiny", "clip_folders"]

settings.register_profile(
    "mixgrpo",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("mixgrpo")


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
