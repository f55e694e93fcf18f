"""`mixgrpo compare` as a user meets it, in a few small iterations of flux-nano."""

import json
import shlex
from pathlib import Path

import pytest

from mixgrpo.cli import main
from mixgrpo.config.comparison import read_terms

SMALL = [
    "--iterations", "2", "--prompts_per_iteration", "1", "--rollout.group_size", "2", "--optim.warmup", "0",
    "--eval.every", "1", "--eval.num_prompts", "2", "--eval.samples", "2", "--eval.num_steps", "2",
]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["compare", *args]) == 0
    return capsys.readouterr().out


def fail(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["compare", *args]) == 2
    return capsys.readouterr().err


def test_a_comparison_is_stopped_by_its_budget_goes_on_and_grows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    start = ["flux-nano", "--methods", "dancegrpo", "mixgrpo", "--seeds", "1", *SMALL, "--output", str(folder)]
    start += ["--judges", "jpeg"]
    printed = run(capsys, *start, "--budget-minutes", "1e-6")
    assert "target   the final reward of DanceGRPO" in printed
    assert "seed 0  DanceGRPO  iteration 1/2" in printed
    resume = shlex.split(printed.splitlines()[-1])
    assert resume[-3:] == ["compare", "--resume", str(folder)]
    assert (folder / "index.html").is_file()

    # The same command goes on with the same comparison, and nothing of it may be another.
    printed = run(capsys, *start)
    assert "0 of 2 at their end" in printed
    assert "seed 0  MixGRPO  finished after 2 iterations" in printed
    assert "has optim.lr = 0.0002 for dancegrpo, this call asks for 0.001" in fail(capsys, *start, "--optim.lr", "1e-3")
    assert "has the method mixgrpo too" in fail(capsys, "flux-nano", "--methods", "dancegrpo", *start[4:])

    printed = run(capsys, *resume[-2:], "--methods", "mixgrpo-flash", "--seeds", "1", "--target", "mixgrpo")
    assert "2 of 3 at their end" in printed
    results = json.loads((folder / "results.json").read_text())
    assert [method["name"] for method in results["methods"]] == ["dancegrpo", "mixgrpo", "mixgrpo-flash"]
    assert results["complete"]
    assert results["target"]["method"] == "mixgrpo"
    assert [session.reason for session in read_terms(folder).sessions] == ["budget", "finished", "finished"]
    for method in ("dancegrpo", "mixgrpo", "mixgrpo-flash"):
        rows = [json.loads(line) for line in (folder / method / "seed-0" / "metrics.jsonl").read_text().splitlines()]
        assert all("jpeg" not in row["rewards"] for row in rows if row["kind"] == "train"), "no training sees a judge"
        assert all("jpeg" in row["rewards"] for row in rows if row["kind"] == "eval")
    settings = json.loads((folder / "mixgrpo-flash" / "settings.json").read_text())
    assert settings["iterations"] == 2
    assert settings["eval"]["training_sampler"] is True
    assert settings["checkpoint"]["keep"] == 1

    page = (folder / "index.html").read_text()
    (folder / "index.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "index.html")
    assert (folder / "index.html").read_text() == page


def test_a_call_that_cannot_start_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["flux-nano", "--methods", "mixgrpo", *SMALL, "--rewards.1.use", "no_such_module:factory"]
    assert "no_such_module" in fail(capsys, *line)
    assert not list((tmp_path / "runs").glob("*"))
