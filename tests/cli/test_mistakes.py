"""Every mistake on the command line ends in one message on stderr and exit code 2."""

import re
from pathlib import Path

import pytest
from PIL import Image

from mixgrpo.cli import main
from mixgrpo.config.load import dump_resolved, load_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder in which nothing has happened but the start."""
    folder = tmp_path / "run"
    folder.mkdir()
    dump_resolved(load_config("flux-nano"), folder / "resolved.json")
    return folder


def _fail(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(args) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("mixgrpo: ")
    assert len(re.findall(r"^mixgrpo: ", printed.err, re.MULTILINE)) == 1
    assert "Traceback" not in printed.err
    return printed.err


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("trian flux-nano", "did you mean train?"),
        ("--versio", "unknown option --versio"),
        ("train", "name a preset or a settings file first"),
        ("train --output x", "name a preset or a settings file first"),
        ("train --resum x", "did you mean --resume?"),
        ("train --resume", "expected one argument"),
        ("train --resume nowhere", "there is no run folder nowhere"),
        ("train --dry-run", "name a preset or a settings file first"),
        ("train flux-nano --dryrun", "did you mean --dry-run?"),
        ("train flux-nano --dry-run --window.size 9", "window.size (9) does not fit"),
        ("train flux-nano --dry-run --prompts.train nowhere.txt", "nowhere.txt"),
        ("train flux-nan", "did you mean flux-nano?"),
        ("train nowhere.toml", "cannot read the settings file nowhere.toml: No such file"),
        ("train flux-nano --output", "expected one argument"),
        ("train flux-nano --windw.size 2", "did you mean --window.size?"),
        ("train flux-nano --window.size 9", "window.size (9) does not fit"),
        ("train flux-nano --optim.lr fast", "optim.lr is 'fast' (given on the command line); allowed: a number"),
        ("train flux-nano --rollout.group_size 7 --loss.updates_per_iteration 2", "rollout.group_size = 6 or 8"),
        ("train flux-nano --prompts.train nowhere.txt", "nowhere.txt"),
        ("serve-reward", "the following arguments are required: REWARD"),
        ("serve-reward jpg", "no reward 'jpg'. Did you mean 'jpeg'?"),
        ("serve-reward nowhere:make", "'nowhere' cannot be imported"),
        ("serve-reward jpeg --port 70000", "'70000' is not a port from 0 to 65535"),
        ("serve-reward jpeg --options-json {", "--options-json is not JSON"),
        ("serve-reward jpeg --options-json [1]", "--options-json must hold options by reward"),
        ('serve-reward jpeg --options-json {"quality":9}', "--options-json must hold options by reward"),
        ('serve-reward jpeg --options-json {"jpg":{}}', "options for 'jpg', but the rewards are jpeg"),
        ('serve-reward jpeg --options-json {"jpeg":{"quality":99}}', "quality must be from 1 to 95"),
        ("serve-reward jpeg a=jpeg jpeg", "two rewards are called 'jpeg'; give one another name: other=jpeg"),
        ("serve-reward a/b=jpeg", "'a/b=jpeg' is neither a reward nor NAME=REWARD"),
        ("serve-reward jpeg --token-env NOT_SET_HERE", "--token-env names 'NOT_SET_HERE', which is not set"),
        ("serve-reward jpeg --max-requests 0", "'0' is not a whole number of at least 1"),
        ("serve-reward jpeg --prot 1", "did you mean --port?"),
        ("compare", "name a model first: mixgrpo compare flux-nano --methods dancegrpo mixgrpo"),
        ("compare --methods dancegrpo mixgrpo", "name a model first"),
        ("compare flux-nan --methods mixgrpo", "no model is called 'flux-nan'; did you mean flux-nano?"),
        ("compare flux-nano-mixgrpo --methods mixgrpo", "no model is called 'flux-nano-mixgrpo'; did you mean"),
        ("compare flux-nano", "say what to compare: --methods and two or more of mixgrpo, "),
        ("compare flux-nano --methods", "expected at least one argument"),
        ("compare flux-nano --methods dancegrp", "no method is called 'dancegrp'; did you mean dancegrpo"),
        ("compare flux-nano --methods mixgrpo --target dancegrpo", "--target dancegrpo does not take part"),
        ("compare flux-nano --methods mixgrpo --judges tesserac", "no reward 'tesserac'; did you mean tesseract?"),
        ("compare flux-nano --methods mixgrpo --judges ocr", "a reward of that name takes part already"),
        ("compare flux-nano --methods mixgrpo --seeds 0", "'0' is not a whole number of at least 1"),
        ("compare flux-nano --methods mixgrpo --budget-minutes 0", "'0' is not a number above 0"),
        ("compare flux-nano --methods mixgrpo --order random", "invalid choice: 'random'"),
        ("compare flux-nano --methods mixgrpo --seed 4", "say how many with --seeds N"),
        ("compare flux-nano --methods mixgrpo --name x", "--name is each run's own"),
        ("compare flux-nano --methods mixgrpo --window.size 9", "window.size (9) does not fit"),
        ("compare flux-nano --methods mixgrpo --iteratoins 9", "flux-nano-mixgrpo: unknown option --iteratoins"),
        ("compare flux-nano --methods mixgrpo dancegrpo --window.size 3", "flux-nano-dancegrpo: --window.size belongs"),
        ("compare flux-nano --methods mixgrpo --prompts.train nowhere.txt", "nowhere.txt"),
        ("compare flux-nano --resume x", "leave out flux-nano"),
        ("compare --resume nowhere", "there is no folder nowhere"),
        ("compare --resume .", "holds no comparison: it has no compare.json"),
        ("plan", "name a preset or a settings file first"),
        ("plan flux-nano --jsn", "did you mean --json?"),
        ("plan flux-nano --window.size 9", "window.size (9) does not fit"),
        ("sample", "MODEL_OR_RUN, --output"),
        ("sample flux-nano --output o", "either --prompt TEXT or --prompts FILE"),
        ("sample flux-nano --output o --prompt a --prompts b", "either --prompt TEXT or --prompts FILE"),
        ("sample flux-nano --output o --prompt a --stpes 3", "did you mean --steps?"),
        ("sample flux-nano --output o --prompt a --steps 0", "'0' is not a whole number of at least 1"),
        ("sample flux-nano --output o --prompt a --shift none", "'none' is not a number above 0"),
        ("sample flux-nano --output o --prompt a --tuned-fraction 2", "'2' is not a number from 0 to 1"),
        ("sample flux-nano --output o --prompt a --tuned-fraction 0.8", "needs --base MODEL"),
        ("sample flux-nano --output o --prompt a --base b", "--base has nothing to do"),
        ("sample some/model --output o --prompt a", "give --height, --width and --steps"),
        ("sample flux-nano --output o --prompts nowhere.txt", "nowhere.txt"),
        ("edit flux-nano --prompt a --to b --output o", "--image"),
        ("edit flux-nano --image i --prompt a --output o", "say what to change: --to TEXT, --mask FILE, or both"),
        ("edit flux-nano --image i --prompt a --to b --output o", "--image i: there is no such file"),
        ("edit flux-nano --image . --prompt a --to b --output o", "--image .: there is no such file"),
        (
            "edit flux-nano --image i --prompt a --to b --output o --strength 1",
            "'1' is not a number above 0 and below 1",
        ),
        ("edit flux-nano --image i --prompt a --to b --output o --method sdee", "'ode', 'sde', 'cycle-sde'"),
        ("edit flux-nano --image i --prompt a --to b --output o --batch 3", "unknown option --batch"),
        ("evaluate flux-nano --rewards a+b", "'a+b' is neither a built-in reward nor an import path"),
        ("evaluate some/model --height 8 --width 8 --steps 2", "give --rewards"),
        ("evaluate some/model --height 8 --width 8 --steps 2 --rewards jpeg", "give --prompts"),
        ("report", "RUN"),
        ("report nowhere", "there is no run folder nowhere"),
        ("export", "RUN"),
        ("export nowhere", "there is no run folder nowhere"),
        ("export nowhere --private", "--private has nothing to do"),
        ("export nowhere --output o --which bst", "'best', 'last'"),
        ("presets flux-nano-mixgrpo-flsh", "did you mean flux-nano-mixgrpo-flash?"),
        ("presets flux-nano more", "unexpected argument 'more'"),
    ],
)
def test_mistake_is_told_in_one_message(
    line: str, part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert part in _fail(capsys, *line.split())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not empty" in _fail(capsys, "sample", "flux-nano", "--prompt", "a", "--output", str(run))
    assert "is a file" in _fail(capsys, "sample", "flux-nano", "--prompt", "a", "--output", str(run / "resolved.json"))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--image small.png", "is 32 x 16 pixels, and flux-nano draws 96 x 32 (width x height)"),
        ("--image small.png --width 32 --height 24", "is 32 x 16 pixels, and flux-nano draws 32 x 24"),
        ("--image right.png --mask small.png", "the mask small.png is 32 x 16 pixels, and the image is 96 x 32"),
        ("--image right.png --mask black.png", "the mask black.png has no white"),
        ("--image right.png --mask nowhere.png", "--mask nowhere.png: there is no such file"),
        ("--image text.png", "--image text.png cannot be read as an image"),
        ("--image cut.png", "--image cut.png cannot be read as an image"),
        ("--image clear.png", "--image clear.png has transparent pixels"),
    ],
)
def test_an_image_that_cannot_be_edited_is_told(
    line: str, part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((96, 32), 99).convert("RGB").save("right.png")
    Image.new("RGB", (32, 16)).save("small.png")
    Image.new("L", (96, 32), 127).save("black.png")
    Image.new("RGBA", (96, 32), (9, 9, 9, 254)).save("clear.png")
    Path("text.png").write_text("not an image")
    Path("cut.png").write_bytes(Path("right.png").read_bytes()[:900])
    message = _fail(capsys, "edit", "flux-nano", "--prompt", "a", "--to", "b", "--output", "o", *line.split())
    assert part in message
    assert not Path("o").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["train", "--resume"], ["report"], ["export", "--output", "o"]):
        assert "it has no resolved.json" in _fail(capsys, *line, str(tmp_path))


def test_resuming_takes_no_settings(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        ["--resume", str(run), "--optim.lr", "1"],
        ["--resume", str(run), "--output", "o"],
        ["flux-nano", "--resume", str(run)],
        ["--resume", str(run), "--dry-run"],
        ["flux-nano", "--dry-run", "--resume", str(run)],
    ):
        message = _fail(capsys, "train", *line)
        assert "with the settings that the run has" in message
        assert str(run / "resolved.json") in message


def test_resuming_a_finished_run_says_where_its_results_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text('{"kind": "end", "iteration": 60, "reason": "finished"}\n')
    assert main(["train", "--resume", str(run)]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
