"""The prompts of a run: what is held out, and what is said about them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.config.sections import PromptsConfig
from mixgrpo.data.prompts import Prompt
from mixgrpo.data.sets import load_heldout, load_prompt_sets, prompt_lines, split_prompts
from mixgrpo.errors import ConfigError

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1)


def _config(train: str, heldout: str, column: str = "prompt") -> Config:
    prompts = PromptsConfig(train=train, heldout=heldout, column=column)
    return load_config("flux-nano").model_copy(update={"prompts": prompts, "prompts_per_iteration": 2})


def _write(path: Path, texts: Sequence[str]) -> str:
    path.write_text("\n".join(texts), encoding="utf-8")
    return str(path)


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def test_the_smallest_hashes_are_held_out_and_the_others_trained_on(tmp_path: Path) -> None:
    texts = [f"picture {number}" for number in range(9)]
    sets = load_prompt_sets(_config(_write(tmp_path / "p.txt", [*texts, "", texts[0]]), "split:3"))
    by_hash = sorted(texts, key=_hash)
    assert list(sets.heldout.prompts) == by_hash[:3]
    assert list(sets.training.prompts) == [text for text in texts if text not in by_hash[:3]]
    assert (sets.training.empty, sets.training.duplicates) == (1, 1)
    assert load_heldout(_config(str(tmp_path / "p.txt"), "split:3")) == sets.heldout


def test_a_split_of_the_bundled_prompts_stays_what_it_is() -> None:
    """Recorded: another rule would train on what earlier runs held out."""
    sets = load_prompt_sets(_config("nano-train", "split:256"))
    assert (len(sets.training.prompts), len(sets.heldout.prompts)) == (2192, 256)
    joined = "\n".join(sets.heldout.prompts).encode()
    assert hashlib.sha256(joined).hexdigest()[:16] == "552ab7e34ef92fd8"


@given(
    texts=st.lists(TEXTS, min_size=3, unique=True),
    more=st.lists(TEXTS, max_size=10),
    data=st.data(),
)
def test_adding_lines_never_holds_out_what_was_trained_on(
    texts: list[str], more: list[str], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(texts) - 1))
    train, held = split_prompts([Prompt(text) for text in texts], count)
    longer = data.draw(st.permutations(list(dict.fromkeys([*texts, *more]))))
    train_after, held_after = split_prompts([Prompt(text) for text in longer], count)
    assert len(held) == len(held_after) == count
    assert not set(train) & set(held)
    assert sorted([*train_after, *held_after]) == sorted(longer)
    assert set(held_after) <= set(held) | set(more)
    assert len(set(held) - set(held_after)) == len(set(held_after) - set(texts))
    assert split_prompts([Prompt(text) for text in longer], count - 1)[1] == held_after[: count - 1]


def test_a_split_keeps_the_columns(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps({"caption": f"p{n}", "n": n}) for n in range(6)))
    sets = load_prompt_sets(_config(str(file), "split:2", "caption"))
    assert {prompt: prompt.columns["n"] for prompt in (*sets.training.prompts, *sets.heldout.prompts)} == {
        f"p{n}": n for n in range(6)
    }


@pytest.mark.parametrize(
    ("heldout", "said"),
    [
        ("split:0", "after 'split:' it takes how many of prompts.train to hold out, such as split:256"),
        ("split:half", "prompts.heldout is 'split:half'"),
        ("split:", "prompts.heldout is 'split:'"),
        ("split:4", r"prompts.train holds 5 prompts, of which prompts_per_iteration \(2\) must be left .*at most 3"),
    ],
)
def test_a_split_that_cannot_be_is_refused(heldout: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_prompt_sets(_config(_write(tmp_path / "p.txt", "abcde"), heldout))


def test_only_the_held_out_prompts_can_be_a_split() -> None:
    with pytest.raises(ConfigError, match=r"only prompts\.heldout can be a split"):
        load_prompt_sets(_config("split:3", "nano-heldout"))


def test_too_few_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds 1 prompts, fewer than prompts_per_iteration \(2\)"):
        load_prompt_sets(_config(_write(tmp_path / "p.txt", "a"), "nano-heldout"))


def test_what_was_left_out_and_what_will_be_cut_is_said(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    lines = [{"prompt": f"p {n}", "n": n} for n in range(1204)] + [{"prompt": ""}] * 3
    lines += [{"prompt": "p 1", "n": 1}, {"prompt": "p 2", "n": 0}, {"prompt": "a long one"}, {"prompt": "a b c d"}]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    sets = load_prompt_sets(_config(str(file), _write(tmp_path / "h.txt", ["one", "two two two", "two two two"])))
    figures = sets.figures(lambda texts: [len(text.split()) for text in texts], 2)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["training"] == {
        "source": str(file),
        "prompts": 1206,
        "empty": 3,
        "duplicates": 2,
        "conflicts": 1,
        "too_long": 2,
    }
    assert prompt_lines(figures) == [
        (
            "prompts",
            "1,206 prompts; left out 3 empty, 2 duplicates (1 with other columns than the first, which counts); "
            "2 are longer than the text encoder's 2 tokens and will be cut",
        ),
        ("held out", "2 prompts; left out 1 duplicate; 1 is longer than the text encoder's 2 tokens and will be cut"),
    ]
    assert prompt_lines(sets.figures())[1] == ("held out", "2 prompts; left out 1 duplicate")


def test_what_is_held_out_is_not_trained_on_and_its_count_is_said(tmp_path: Path) -> None:
    train, heldout = _write(tmp_path / "t.txt", "abcde"), _write(tmp_path / "h.txt", "dexyz")
    sets = load_prompt_sets(_config(train, heldout))
    assert sets.training.prompts == ("a", "b", "c")
    assert sets.heldout.prompts == tuple("dexyz")
    assert prompt_lines(sets.figures())[-1] == (
        "note",
        "2 of the 5 held-out prompts stand in prompts.train too; not trained on",
    )
    assert load_prompt_sets(_config("nano-train", "nano-heldout")).figures()["shared"] == 0
