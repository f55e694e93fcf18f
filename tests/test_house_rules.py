"""Rules that tools keep: format, lint, layers, and no path of a developer's machine in what is shipped."""

import subprocess
import sys
from pathlib import Path

import pytest

from mixgrpo.models import MODELS
from mixgrpo.shapes import FAMILIES

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [("ruff", "format", "--check", "."), ("ruff", "check", "."), ("lint-imports", "--no-cache")],
    ids=" ".join,
)
def test_tool_is_content(command: tuple[str, ...]) -> None:
    done = subprocess.run([TOOLS / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shipped_files_name_no_folder_of_a_machine() -> None:
    texts = [path for path in (ROOT / "src").rglob("*") if path.suffix in {".json", ".py", ".toml", ".txt"}]
    assert len(texts) > 100
    assert not [path for path in texts if any(word in path.read_text() for word in ('"/work', '"/home', '"/root'))]


def test_adapters_are_short_and_have_no_loop_over_sigmas() -> None:
    adapters = {family.adapter.partition(":")[0] for family in MODELS.values()}
    assert adapters
    for path in (ROOT / "src" / "mixgrpo" / "models").glob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= (200 if path.stem in adapters else 400), path
        assert "for sigma" not in text, path


def test_a_plan_knows_every_family_that_has_an_adapter() -> None:
    assert FAMILIES.keys() == MODELS.keys()
