"""What `mixgrpo plan` shows: the window's way, and costs that can be checked by hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from presets import PRESETS, QUICK

from mixgrpo.cli import main
from mixgrpo.commands.plan import stretches
from mixgrpo.config.load import dump_resolved, load_config
from mixgrpo.config.schema import Config
from mixgrpo.shapes import bundled_folder
from mixgrpo.shapes.files import PUBLISHED


def _plan(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["plan", *args]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", PRESETS)
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


@pytest.mark.parametrize(
    ("method", "told", "not_told"),
    [
        ("mixgrpo", ["eta 0.9; a group starts from one noise", "─ ODE before it, by Euler, one call"], ["~"]),
        ("flow-dppo", ["every sample starts from a noise of its own", "─ ODE before it, by Euler ·"], ["one call"]),
        ("flow-grpo", ["█ stochastic and trained", "noise of its own"], ["before", "~"]),
        ("dancegrpo-frozen", ["█ stochastic", "~ stochastic, not trained", "· ODE after it, by Euler"], ["─ "]),
        ("neighbor-grpo", ["all of them deterministic, by DPM-Solver++ of order 2", "neighbouring noises (spread 0.3)",
                           "█ trained, and deterministic like every step", "· not trained"], ["stochastic", "eta"]),
        ("nft", ["all of them deterministic", "finished samples, noised to this sigma"], ["stochastic", "eta"]),
        ("awm", ["all of them deterministic", "finished samples, noised to this sigma"], ["stochastic", "eta"]),
        ("mixgrpo-flash-dual", ["= ODE before it, compressed: 40% of these steps, on a grid of its own, by",
                                "DPM-Solver++ of order 2, one call for the whole group", ": Flash tail: 40%"], ["─ "]),
        ("mixgrpo-flash-star", [": Flash tail: 40%"], ["─ ", "= ODE"]),
    ],
)  # fmt: skip
def test_the_legend_tells_what_the_method_does(
    method: str,
    told: list[str],
    not_told: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    name = f"flux-nano-{method}"
    printed = _plan(capsys, name).split("model calls")[0].replace(load_config(name).description, "")
    words = " ".join(printed.split())
    assert [each for each in told if each not in words] == []
    assert [each for each in not_told if each in words] == []


def test_steps_that_are_stochastic_but_not_trained_are_not_drawn_as_deterministic(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = _plan(capsys, "flux-nano-dancegrpo-frozen").splitlines()
    charts = [set(line[13:]) for line in lines if line[:4].strip().isdigit() and line[13:]]
    assert charts == [{"█"}] * 2 + [{"~"}] * 5 + [{"·"}]


def test_shares_are_of_dancegrpo_with_as_many_steps(capsys: pytest.CaptureFixture[str]) -> None:
    # 8 steps, of which floor(0.6 * 7) = 4 are trained; the published DanceGRPO takes 25 and 14
    printed = " ".join(_plan(capsys, "flux1-dev-neighbor-grpo").split())
    assert "DanceGRPO, same T: 8 steps as here, of which it trains 4" in printed


@pytest.mark.parametrize("kind", ["decaying", "frozen", "random", "all"])
def test_every_window_can_be_drawn(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "█" in _plan(capsys, "flux-nano", "--window.type", kind)


def test_other_terminals_get_ascii(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mixgrpo.commands import plan_view

    monkeypatch.setattr(plan_view, "speaks_unicode", lambda console: False)
    chart = _plan(capsys, "flux-nano-mixgrpo-flash").split("model calls")[0]
    assert chart.isascii()


def test_prompts_are_counted_but_never_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    lines = _plan(capsys, "flux-nano").splitlines()
    assert "prompts (nano-train): 2,448 prompts" in lines
    assert "held out (nano-heldout): 256 prompts" in lines
    (tmp_path / "mine.csv").write_text("text\n" + "\n".join(f"p {number % 25}" for number in range(30)))
    mine = ("--prompts.train", str(tmp_path / "mine.csv"), "--prompts.column", "text", "--prompts.heldout", "split:5")
    lines = _plan(capsys, "flux-nano", *mine).splitlines()
    assert f"prompts ({tmp_path / 'mine.csv'}): 20 prompts; left out 5 duplicates" in lines
    assert "held out (split:5): 5 prompts" in lines
    figures = json.loads(_plan(capsys, "flux-nano", *mine, "--json"))["prompts"]
    assert (figures["training"]["prompts"], figures["heldout"]["prompts"], figures["shared"]) == (20, 5, 0)

    hub = ("--prompts.train", "hub:owner/name")
    assert "prompts (hub:owner/name): counted when the run starts" in _plan(capsys, "flux-nano", *hub).splitlines()
    assert json.loads(_plan(capsys, "flux-nano", *hub, "--json"))["prompts"] is None
    assert main(["plan", "flux-nano", "--prompts.train", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


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


def test_operations_are_calls_times_what_a_call_takes(capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(_plan(capsys, "flux1-dev-mixgrpo", "--json"))
    model, calls = plan["model"], plan["calls_per_sample"]["shared"]
    operations = plan["operations_per_iteration"]["shared"]
    samples = 32 * 12
    assert model["parameters"] == model["trained_parameters"] == 11_901_408_320
    assert operations["sampling"] == pytest.approx(samples * calls["sampling"] * model["forward_operations"])
    both = model["forward_operations"] + model["backward_operations"]
    assert operations["update"] == pytest.approx(samples * calls["update"] * both)
    assert operations["decode"] == pytest.approx(samples * model["decoding_operations"])
    assert operations["of_dancegrpo"] < plan["operations_per_iteration"]["unshared"]["of_dancegrpo"] < 1.0


def test_guidance_by_a_second_pass_doubles_the_work_of_a_call(capsys: pytest.CaptureFixture[str]) -> None:
    qwen = ("flux1-dev-mixgrpo", "--model.path", "Qwen/Qwen-Image")
    once, twice = (json.loads(_plan(capsys, *qwen, "--model.guidance-scale", g, "--json")) for g in ("1", "4"))
    assert (once["model"]["passes_per_call"], twice["model"]["passes_per_call"]) == (1, 2)
    for part, times in (("sampling", 2), ("update", 2), ("decode", 1), ("encode", 1)):
        assert twice["operations_per_iteration"]["shared"][part] == pytest.approx(
            times * once["operations_per_iteration"]["shared"][part]
        )
    assert twice["memory_bytes"]["resident"] == once["memory_bytes"]["resident"]
    assert twice["memory_bytes"]["phases"]["updating"] > once["memory_bytes"]["phases"]["updating"]
    assert "a call takes two because of guidance" in " ".join(_plan(capsys, *qwen).split())


def test_gpus_are_what_is_assumed_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--gpu-tflops", "100", "--utilisation", "0.5", "--gpu-memory", "40")
    plan = json.loads(_plan(capsys, "flux1-dev-mixgrpo", *args, "--json"))
    total = plan["operations_per_iteration"]["shared"]["total"]
    shares = {(share["gpus"], share["rank"]): share for share in plan["gpus"]}
    assert set(shares) == {(gpus, rank) for gpus in (1, 8, 32) for rank in (0, 32)}
    assert shares[1, 0]["seconds"] == pytest.approx(total / 50e12)
    assert shares[32, 0]["seconds"] == pytest.approx(total / 32 / 50e12)
    assert shares[8, 0]["hours"] == pytest.approx(300 * shares[8, 0]["seconds"] / 3600)
    assert shares[1, 0]["gib"] > 200 > 40 > shares[1, 32]["gib"]
    printed = _plan(capsys, "flux1-dev-mixgrpo", *args)
    assert "100 TFLOP/s" in printed
    assert "40 GiB" in printed
    assert "barely" in printed


def test_more_gpus_than_prompts_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert "leave 16 of 32 GPUs" in _plan(capsys, "flux1-dev-mixgrpo", "--prompts-per-iteration", "16")


def test_the_bundled_model_gets_gpus_only_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert "GPUs" not in _plan(capsys, "flux-nano")
    assert "GPUs" in _plan(capsys, "flux-nano", "--gpu-memory", "8")


def test_a_hub_model_whose_size_is_not_known_still_has_calls(capsys: pytest.CaptureFixture[str]) -> None:
    printed = " ".join(_plan(capsys, "flux1-dev-mixgrpo", "--model.path", "somebody/a-model").split())
    assert "How large somebody/a-model is is not known before it is downloaded" in printed
    assert "PFLOP" not in printed
    assert "31.54 0.47" in printed


@pytest.mark.parametrize("hub_id", PUBLISHED)
def test_a_published_model_needs_no_download(hub_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(_plan(capsys, "flux1-dev-mixgrpo", "--model.path", hub_id, "--json"))
    assert plan["model"]["source"] == f"{hub_id}, as published"
    assert plan["model"]["parameters"] == plan["model"]["trained_parameters"] > 1e9
    assert plan["operations_per_iteration"]["shared"]["update"] > 1e15


def test_of_two_transformers_both_are_held_and_one_runs(capsys: pytest.CaptureFixture[str]) -> None:
    # Wan 2.2 A14B is twice what Wan 2.1 14B is
    clip = ("flux1-dev-mixgrpo", "--model.num-frames", "9", "--model.path")
    args = ("Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan-AI/Wan2.2-T2V-A14B-Diffusers")
    one, two = (json.loads(_plan(capsys, *clip, hub_id, "--json")) for hub_id in args)
    assert two["model"]["parameters"] == 2 * one["model"]["parameters"]
    assert two["operations_per_iteration"] == one["operations_per_iteration"]
    assert two["memory_bytes"]["phases"]["updating"] == one["memory_bytes"]["phases"]["updating"]
    for name in ("weights", "gradients", "optimiser"):
        assert two["memory_bytes"]["resident"][name] == 2 * one["memory_bytes"]["resident"][name]
    assert "in two transformers, of which one runs" in " ".join(_plan(capsys, *clip, args[1]).split())


def test_more_frames_take_more_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    path = ("flux1-dev-mixgrpo", "--model.path", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "--json")
    tokens = [
        json.loads(_plan(capsys, *path, "--model.num-frames", frames))["model"]["tokens"] - 512
        for frames in ("1", "5", "81")
    ]
    assert tokens == [45 * 45, 2 * 45 * 45, 21 * 45 * 45]


def test_a_family_without_an_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "KolorsPipeline"}', encoding="utf-8")
    assert main(["plan", "flux-nano", "--model.path", str(tmp_path)]) == 2
    assert "'KolorsPipeline', which has no adapter" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--utilisation", "1.5"), "not a number above 0 and at most 1"),
        (("--gpu-tflops", "0"), "not a number above 0"),
        (("--model.path", "./nowhere"), "neither a bundled model"),
    ],
)
def test_what_cannot_be_reckoned_with_is_refused(
    args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "flux1-dev", *args]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_folder_with_a_config_that_lacks_something_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder("flux-nano"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    transformer = folder / "transformer" / "config.json"
    transformer.write_text('{"in_channels": 32}', encoding="utf-8")
    assert main(["plan", "flux-nano", "--model.path", str(folder)]) == 2
    assert "lacks 'num_attention_heads'" in " ".join(capsys.readouterr().err.split())
    transformer.write_text("{", encoding="utf-8")
    assert main(["plan", "flux-nano", "--model.path", str(folder)]) == 2
    assert "is not JSON" in " ".join(capsys.readouterr().err.split())


def test_a_calibration_predicts_seconds(
    make_config: Callable[..., Config],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "settings.json"
    dump_resolved(make_config(rewards=[{"name": "brightness"}]), file)
    printed = _plan(capsys, str(file), "--calibrate", "0.1")
    assert "s per iteration" in printed
    plan = json.loads(_plan(capsys, str(file), "--calibrate", "0.1", "--json"))
    assert plan["seconds_per_iteration"]["total"] > 0.0
    assert set(plan["speeds"]) == {"forward", "update", "decode", "score", "encode", "step"}


def test_different_noise_shares_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--rollout.noise-spread", "1", "--json")
    assert "shared" not in json.loads(_plan(capsys, "flux-nano", *args))["calls_per_sample"]


def test_stretches_cover_the_run_once() -> None:
    for name in QUICK:
        config = load_config(name)
        covered = [iteration for stretch in stretches(config) for iteration in stretch.iterations]
        assert covered == list(range(config.iterations))
