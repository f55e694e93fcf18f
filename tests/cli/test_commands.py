"""Commands that load no model: their output, their speed, and the list of all options."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from presets import QUICK

import mixgrpo
from mixgrpo.cli import COMMANDS, main
from mixgrpo.commands import compare, doctor, edit, evaluate, export, plan, presets, report, sample, serve_reward, train
from mixgrpo.config.flags import flags_of
from mixgrpo.config.load import preset_text
from mixgrpo.config.presets import methods, model_names, read_preset

LISTED = Path(__file__).with_name("flags.txt")
PARSERS = {
    "train": train.make_parser,
    "compare": compare.make_parser,
    "plan": plan.make_parser,
    "doctor": doctor.make_parser,
    "sample": sample.make_parser,
    "edit": edit.make_parser,
    "evaluate": evaluate.make_parser,
    "report": report.make_parser,
    "export": export.make_parser,
    "presets": presets.make_parser,
    "serve-reward": serve_reward.make_parser,
}
NO_TORCH = """
import sys
from mixgrpo.cli import main
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit:
        pass
    heavy = {"torch", "diffusers", "transformers"} & set(sys.modules)
    if heavy:
        sys.exit(f"{line}: {heavy}")
"""


def _output(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(args) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(COMMANDS) == set(PARSERS)
    for line in ([], ["--help"], ["-h"]):
        text = _output(capsys, *line)
        assert all(f"  {command} " in text for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert _output(capsys, "--version") == f"mixgrpo {mixgrpo.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: mixgrpo {command}" in capsys.readouterr().out


def test_help_of_a_preset_shows_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "flux1-dev-mixgrpo", "--window.size", "3", "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--window.size INT Stochastic steps w in the window. (default: 4)" in text
    assert "--rewards.0.weight NUMBER" in text
    assert "--output DIR: the run's folder" in text


def test_presets_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    words = _output(capsys, "presets").split()
    assert {*model_names(), *methods()} <= set(words)
    for name in QUICK:
        assert _output(capsys, "presets", name) == preset_text(name)


def test_a_printed_preset_is_a_settings_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(_output(capsys, "presets", "flux-nano"))
    assert json.loads(_output(capsys, "plan", str(tmp_path / "mine.toml"), "--json"))["name"] == "flux-nano"


def test_the_list_of_options_is_the_stored_one() -> None:
    found = [
        f"{command} {option}" for command, make in PARSERS.items() for option in make().options() if option != "--help"
    ]
    raw = read_preset("flux-nano")
    windows = [{"window": {"type": kind}} for kind in ("sliding", "decaying", "frozen", "random", "all")]
    losses = [{"loss": {"type": kind}} for kind in ("grpo", "neighbor", "nft", "awm")]
    settings: dict[str, None] = {}
    for union in (*windows, *losses):
        settings |= dict.fromkeys(
            f"settings --{flag.name}" for flag in flags_of(raw | union) if "rewards.1" not in flag.name
        )
    listed = LISTED.read_text(encoding="utf-8").splitlines()
    assert sorted([*found, *settings]) == listed, "a new option is a promise: add it to tests/cli/flags.txt on purpose"


def test_light_commands_and_mistakes_never_load_torch() -> None:
    lines = [
        "--help",
        "--version",
        "train --help",
        "train flux-nano --help",
        "plan flux1-dev-mixgrpo-flash",
        "presets",
        "report nowhere",
        "compare --help",
        "compare flux-nano --methods dancegrpo mixgrp",
        "compare flux-nano --methods dancegrpo mixgrpo --window.size 99",
        "compare --resume nowhere",
        "train --resume nowhere",
        "sample flux-nano --output . --prompt a",
        "edit flux-nano --output . --prompt a --to b --image nowhere.png",
        "evaluate flux-nano --rewards a+b",
        "serve-reward nobody",
        "doctor flux-nano --window.size 99",
        "train flux-nano --window.size 99",
        "train flux-nano --prompts.train nowhere.txt",
        "nonsense",
    ]
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *lines], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_config_never_loads_torch() -> None:
    code = (
        "import sys, mixgrpo.config.load, mixgrpo.config.flags, mixgrpo.train.settings, mixgrpo.train.console;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_the_module_is_the_command(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "mixgrpo", "train", "flux-nan"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0].startswith("mixgrpo: no preset is called 'flux-nan'; did you mean flux-nano?")
