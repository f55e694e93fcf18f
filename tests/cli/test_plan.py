"""What `mixgrpo plan` shows: the window's way, and costs that can be checked by hand."""

import json

import pytest

from mixgrpo.cli import main
from mixgrpo.commands.plan import stretches
from mixgrpo.config.load import load_config
from mixgrpo.config.presets import preset_names


def _plan(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["plan", *args]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", preset_names())
def test_every_preset_fits_the_terminal(
    name: str, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = _plan(capsys, name).splitlines()
    assert max(len(line) for line in lines) <= width
    config = load_config(name)
    first = next(number for number, line in enumerate(lines) if line.startswith("step  sigma"))
    for step in range(config.rollout.num_steps):
        assert int(lines[first + 1 + step].split()[0]) == step
    assert any(line.startswith("DanceGRPO") for line in lines)


def test_the_chart_follows_the_window(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = _plan(capsys, "flux-nano", "--iterations", "60", "--window.interval", "10").splitlines()
    charts = {line.split()[0]: line[13:] for line in lines if line[:4].strip().isdigit() and line[13:]}
    assert charts["0"].startswith("█" * 10 + "─")
    assert charts["1"].startswith("█" * 20 + "─")
    assert charts["2"].startswith("·" * 10 + "█" * 20 + "─")
    assert "█" not in charts["7"]


@pytest.mark.parametrize("kind", ["decaying", "frozen", "random", "all"])
def test_every_window_can_be_drawn(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "█" in _plan(capsys, "flux-nano", "--window.type", kind)


def test_other_terminals_get_ascii(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mixgrpo.commands import plan_view

    monkeypatch.setattr(plan_view, "speaks_unicode", lambda console: False)
    chart = _plan(capsys, "flux-nano-mixgrpo-flash").split("model calls")[0]
    assert chart.isascii()


def test_figures_are_those_of_the_design(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--window.type", "frozen", "--window.start", "7", "--loss.updates-per-iteration", "1", "--json")
    calls = json.loads(_plan(capsys, "flux1-dev-mixgrpo", *args))["calls_per_sample"]
    assert calls["shared"]["sampling"] == pytest.approx((7 + 1) / 12 + (24 - 7))
    assert calls["shared"]["update"] == pytest.approx(1 / 12 + 3)
    assert (calls["unshared"]["sampling"], calls["unshared"]["update"]) == (25.0, 4.0)
    assert calls["unshared"]["forwards"] == 25.0 + 3.0 * 4.0
    assert (calls["DanceGRPO"]["sampling"], calls["DanceGRPO"]["update"]) == (25.0, 14.0)
    assert calls["DanceGRPO"]["forwards"] == 25.0 + 3.0 * 14.0


def test_later_updates_pay_for_their_old_log_probs(capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(_plan(capsys, "flux1-dev-mixgrpo", "--json"))
    calls = plan["calls_per_sample"]["unshared"]
    assert calls["old"] == pytest.approx(4.0 * 3 / 4)
    assert calls["forwards"] == pytest.approx(25.0 + 3.0 + 12.0)
    assert plan["share_of_dancegrpo"]["unshared"] == pytest.approx(40.0 / 67.0)
    assert "old: forward passes" in _plan(capsys, "flux1-dev-mixgrpo")
    assert "old: forward passes" not in _plan(capsys, "flux-nano", "--loss.updates-per-iteration", "1")


def test_different_noise_shares_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--rollout.noise-spread", "1", "--json")
    assert "shared" not in json.loads(_plan(capsys, "flux-nano", *args))["calls_per_sample"]


def test_stretches_cover_the_run_once() -> None:
    for name in preset_names():
        config = load_config(name)
        covered = [iteration for stretch in stretches(config) for iteration in stretch.iterations]
        assert covered == list(range(config.iterations))
