"""`mixgrpo serve-reward` as it is used: in a process of its own, asked by a run's reward, ended with Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mixgrpo.cli import main
from mixgrpo.config.sections import RewardConfig
from mixgrpo.errors import ConfigError
from mixgrpo.rewards import make_reward

OWN = """
def make(scale=1.0):
    return lambda images, prompts: images[:, 0].mean((1, 2)) * scale
"""


@contextmanager
def terminal_signals() -> Iterator[None]:
    """Let a command be started that Ctrl-C ends, as in a terminal.

    A shell lets what it runs in the background ignore SIGINT, and that is inherited; a handler of Python's is not.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def serving(folder: Path, *args: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command on a free port; yields the process and what it says before it serves."""
    line = [sys.executable, "-m", "mixgrpo", "serve-reward", *args, "--port", "0"]
    environment = os.environ | variables
    pipe = subprocess.PIPE
    with terminal_signals():
        started = subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, cwd=folder, env=environment)
    with started as process:
        assert process.stdout is not None
        said: list[str] = []
        wanted = sum(not arg.startswith("-") and not arg.startswith("{") for arg in args)
        try:
            while "".join(said).count("options = {") < wanted and process.poll() is None:
                said.append(process.stdout.readline())
            yield process, "".join(said)
        finally:
            process.kill()


def test_what_it_prints_is_a_config_that_works(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    images = (torch.arange(3 * 48) % 256).reshape(3, 3, 4, 4).float() / 255
    options = '{"make": {"scale": 2.0}, "coarse": {"quality": 5}}'
    with serving(tmp_path, "jpeg", "own:make", "coarse=jpeg", "--options-json", options) as (process, said):
        rewards = [RewardConfig(**entry) for entry in tomllib.loads(said.partition("\n")[2])["rewards"]]
        assert [reward.name for reward in rewards] == ["jpeg", "make", "coarse"]
        found = [make_reward(reward.use, reward.options)(images, ["x"] * 3).values.tolist() for reward in rewards]
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
    assert said.startswith("serving jpeg, make, coarse on http://127.0.0.1:")
    assert found[0] == make_reward("jpeg")(images, ["x"] * 3).tolist()
    assert found[1] == pytest.approx((images[:, 0].mean((1, 2)) * 2).tolist())
    assert found[2] == make_reward("jpeg", {"quality": 5})(images, ["x"] * 3).tolist()
    assert process.returncode == 0
    assert out.splitlines()[-1].startswith("stopping")
    assert "Traceback" not in errors
    assert sum("3 images in" in line for line in errors.splitlines()) == 3


def test_a_token_is_asked_for_and_a_service_manager_can_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "open-sesame-123"
    with serving(tmp_path, "brightness", "--token-env=SERVER_TOKEN", SERVER_TOKEN=token) as (process, said):
        options = tomllib.loads(said.partition("\n")[2])["rewards"][0]["options"]
        monkeypatch.setenv("SERVER_TOKEN", token)
        found = make_reward("http", options)(torch.ones(1, 3, 2, 2), ["x"])
        with pytest.raises(ConfigError, match="wants a token"):
            make_reward("http", {"url": options["url"]})
        process.terminate()
        out, errors = process.communicate(timeout=30)
    assert found.values.tolist() == [1.0]
    assert process.returncode == 0
    assert token not in said + out + errors


def test_a_port_that_is_taken_is_a_mistake_that_can_be_mended(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve-reward", "brightness", "--port", str(port)]) == 2
    message = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in message
    assert "--port" in message
