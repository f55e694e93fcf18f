"""The columns of a prompt reach the rewards, in training, in evaluations and from the command line."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor

from mixgrpo.cli import main
from mixgrpo.config.schema import Config
from mixgrpo.data.prompts import Prompt
from mixgrpo.models import FlowModel
from mixgrpo.train.console import ConsoleSink
from mixgrpo.train.loop import train


class ByColumn:
    """Scores an image by a column of its prompt, and remembers what it was asked."""

    name = "by_column"
    asked: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, *, fails_once: bool = False) -> None:
        self.fails_once = fails_once

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if self.fails_once and len(prompts) > 1:
            raise ValueError("one at a time")
        wanted = []
        for prompt in prompts:
            assert isinstance(prompt, Prompt)
            wanted.append(prompt.columns["wanted"])
        self.asked.extend(zip(map(str, prompts), wanted, strict=True))
        return images.mean((1, 2, 3)) + torch.tensor(wanted, dtype=torch.float32)


TRAIN = {f"a picture number {number}": number for number in range(6)}
HELDOUT = {f"a held-out picture number {number}": 100 + number for number in range(4)}


def _write(path: Path, prompts: dict[str, int]) -> str:
    path.write_text("\n".join(json.dumps({"prompt": text, "wanted": wanted}) for text, wanted in prompts.items()))
    return str(path)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, object]:
    return {
        "train": _write(tmp_path / "train.jsonl", TRAIN),
        "heldout": _write(tmp_path / "heldout.jsonl", HELDOUT),
    }


def _rows(run: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


@pytest.mark.parametrize("fails_once", [False, True])
def test_a_reward_reads_columns_in_training_and_in_evaluations(
    fails_once: bool, tmp_path: Path, sources: dict[str, object], make_config: Callable[..., Config]
) -> None:
    ByColumn.asked.clear()
    use = {"name": "by_column", "use": f"{__name__}:ByColumn", "options": {"fails_once": fails_once}}
    config = make_config(
        iterations=3, rewards=[use], prompts=sources, rollout={"micro_batch": 4}, eval={"training_sampler": True}
    )
    train(config, tmp_path / "run")
    assert set(ByColumn.asked) == set(TRAIN.items()) | set(HELDOUT.items())
    # 3 iterations of 2 prompts x 4 samples; 3 evaluations of 4 prompts by two samplers
    assert sum(text in TRAIN for text, _ in ByColumn.asked) == 3 * 2 * 4
    assert sum(text in HELDOUT for text, _ in ByColumn.asked) == 3 * 4 * 2
    first, *_ = _rows(tmp_path / "run", "eval")
    assert 101.5 < first["rewards"]["by_column"] < 102.5
    assert 101.5 < first["training_sampler"]["rewards"]["by_column"] < 102.5


def test_evaluate_hands_columns_on(
    tmp_path: Path,
    sources: dict[str, object],
    make_config: Callable[..., Config],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    settings = {**sources, "train": _write(tmp_path / "all.jsonl", TRAIN | HELDOUT), "heldout": "split:3"}
    train(make_config(iterations=1, rewards=[{"name": "brightness"}], prompts=settings), run)
    mine = tmp_path / "mine.csv"
    mine.write_text('text,wanted\n"a",7\n"b",9\n"a",7\n')
    capsys.readouterr()

    line = ["evaluate", str(run), "--rewards", f"{__name__}:ByColumn", "--steps", "2", "--json"]
    ByColumn.asked.clear()
    assert main(line) == 0
    printed = capsys.readouterr()
    assert (json.loads(printed.out)["num_prompts"], printed.err) == (3, "")
    heldout = json.loads((run / "samples" / "index.json").read_text())["prompts"]
    assert [text for text, _ in ByColumn.asked][:2] == heldout, "the prompts that the run held out, in their order"
    assert set(ByColumn.asked) <= set((TRAIN | HELDOUT).items())

    assert main([*line[:2], "--rewards", "brightness", *line[4:], "--prompts", str(mine), "--column", "text"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["num_prompts"] == 2
    assert printed.err == f"{mine}: left out 1 duplicate\n"
    assert main([*line, "--column", "text"]) == 2
    assert "--column has nothing to do" in capsys.readouterr().err


def test_a_run_says_at_its_start_what_became_of_the_prompts(
    tmp_path: Path, make_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [*TRAIN, "", next(iter(TRAIN)), "x" * 32]  # a byte is a token, and so is the end
    (tmp_path / "mine.txt").write_text("\n".join(texts))
    config = make_config(iterations=1, prompts={"train": str(tmp_path / "mine.txt")})
    train(config, tmp_path / "run", sinks=[ConsoleSink(config)])
    assert capsys.readouterr().out.splitlines()[:2] == [
        "  prompts  7 prompts; left out 1 empty, 1 duplicate; 1 is longer than the text encoder's 32 tokens "
        "and will be cut",
        "  held out 4 prompts",
    ]
    (start,) = _rows(tmp_path / "run", "start")
    assert start["prompts"]["training"] == {
        "source": str(tmp_path / "mine.txt"),
        "prompts": 7,
        "empty": 1,
        "duplicates": 1,
        "conflicts": 0,
        "too_long": 1,
    }
    assert start["prompts"]["token_limit"] == 32


def test_tokens_are_counted_as_they_are_encoded(tiny_model: FlowModel, tiny_folder: Path) -> None:
    """31 letters and the end fill the encoder of the tiny model; what comes after changes nothing."""
    assert tiny_model.count_tokens(["", "abc", "x" * 31, "x" * 32, "\u00e9"]) == [1, 4, 32, 33, 3]
    full, over, cut = (tiny_model.encode(["x" * 31 + more]).tensors["text"] for more in ("", "y", "z"))
    assert torch.equal(over, cut)
    pipeline = FluxPipeline.from_pretrained(tiny_folder)
    assert len(pipeline.tokenizer_2("x" * 40, max_length=32, truncation=True).input_ids) == full.shape[1] == 32


def test_a_prompt_is_encoded_as_its_text(tiny_model: FlowModel) -> None:
    plain, rich = tiny_model.encode(["a fox"]).tensors, tiny_model.encode([Prompt("a fox", {"n": 1})]).tensors
    assert all(torch.equal(plain[name], rich[name]) for name in plain)


def test_sample_says_what_it_leaves_out_and_cuts(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in ("a", "a", "", "y" * 60)))
    line = ["sample", str(tiny_folder), "--height", "16", "--width", "32", "--steps", "2"]
    line += ["--max-sequence-length", "32", "--prompts", str(tmp_path / "mine.jsonl"), "--output", str(tmp_path / "o")]
    assert main(line) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("2 images in ")
    assert f"{tmp_path / 'mine.jsonl'}: left out 1 empty, 1 duplicate\n" in printed.err
    assert "of 2 prompts, 1 is longer than the text encoder's 32 tokens and will be cut\n" in printed.err
    assert json.loads((tmp_path / "o" / "index.json").read_text())["prompts"] == {"0000.png": "a", "0001.png": "y" * 60}


def test_edit_says_that_it_cuts(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (32, 16), "red").save(tmp_path / "red.png")
    line = ["edit", str(tiny_folder), "--image", str(tmp_path / "red.png"), "--prompt", "y" * 60, "--to", "z"]
    line += ["--steps", "2", "--max-sequence-length", "32", "--output", str(tmp_path / "o")]
    assert main(line) == 0
    assert "of 2 prompts, 1 is longer than the text encoder's 32 tokens and will be cut\n" in capsys.readouterr().err
