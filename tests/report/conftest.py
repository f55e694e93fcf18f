"""Run folders to report on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from report.fake_run import FakeRun


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run folder: `make_run(iterations=1)`."""

    def make(name: str = "run", **settings: Any) -> Path:
        return FakeRun(**settings).write(tmp_path / name)

    return make
