"""Presets for tests: every method of two models and a few of every other are quick, the rest are slow proofs."""

import pytest

from mixgrpo.config.presets import find_preset, preset_names

_EVERY_METHOD = ("flux-nano", "flux1-dev")
_FEW = ("mixgrpo", "mixgrpo-flash-star", "nft")

QUICK = tuple(
    name for name in preset_names() if find_preset(name).model in _EVERY_METHOD or find_preset(name).method in _FEW
)
PRESETS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in preset_names()]
