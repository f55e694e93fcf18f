"""The file of a comparison, and what may change in it when the comparison goes on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mixgrpo.config.comparison import (
    Entrant,
    Terms,
    agree,
    check_fair,
    check_unchanged,
    differing,
    read_terms,
    write_terms,
)
from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.errors import CheckpointError, ConfigError


def terms(methods: Sequence[str] = ("a", "b"), **changes: Any) -> Terms:
    values = {"model": "flux-nano", "seeds": 2, "order": "interleaved", "target": methods[0]} | changes
    return Terms(methods=tuple(Entrant(name=name, title=name.upper()) for name in methods), **values)


def config(*args: str) -> Config:
    return load_config("flux-nano", args)


def test_terms_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    written = terms(settings=("--iterations", "30"))
    write_terms(tmp_path / "new", written)
    assert read_terms(tmp_path / "new") == written
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["compare.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "seeds: Input should be greater than or equal to 1"),
        ({"format": 2}, "format: Input should be 1"),
        ({"target": "c"}, "the target 'c' is none of the methods: a, b"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"methods": [{"name": "a", "title": "A"}] * 2}, "the method 'a' is named twice"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_terms(tmp_path, terms())
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as raised:
        read_terms(tmp_path)
    assert f"{path} is damaged: " in str(raised.value)
    assert message in str(raised.value)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    write_terms(tmp_path, terms())
    path = tmp_path / "compare.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(CheckpointError, match=r"compare\.json is damaged: Invalid JSON"):
        read_terms(tmp_path)


def test_methods_seeds_and_another_target_may_be_added() -> None:
    merged = agree(terms(), terms(["c", "b", "a"], seeds=3))
    # What is there keeps its place: it is the order in which the methods take turns.
    assert [method.name for method in merged.methods] == ["a", "b", "c"]
    assert (merged.seeds, merged.target) == (3, "c")
    assert agree(terms(), terms()) == terms()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (terms(model="other"), "has the model flux-nano, this call asks for other"),
        (terms(order="sequential"), "has the order interleaved, this call asks for sequential"),
        (terms(judges=("tesseract",)), "has the judges none, this call asks for tesseract"),
        (terms(["a"]), "has the method b too"),
        (terms(seeds=1), "has 2 seeds. Seeds can be added, but not be left out"),
    ],
)
def test_nothing_else_may_change(wanted: Terms, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agree(terms(), wanted)


def test_configs_are_compared_setting_by_setting() -> None:
    assert differing(config(), config()) == {}
    found = differing(config(), config("--optim.lr", "1e-5", "--rewards.1.weight", "2", "--window.type", "all"))
    assert found["optim.lr"] == (2e-4, 1e-5)
    assert found["rewards.1.weight"] == (0.5, 2.0)
    assert found["window.type"] == ("sliding", "all")
    assert found["window.size"] == (2, None)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--iterations", "7"),
        ("--prompts_per_iteration", "4"),
        ("--rewards.1.weight", "2.0"),
        ("--eval.every", "3"),
        ("--eval.seed", "3"),
        ("--model.guidance_scale", "1.0"),
        ("--prompts.heldout", "signs-heldout"),
        ("--rollout.shift", "1.0"),
    ],
)
def test_methods_that_would_not_be_comparable_are_refused_by_the_setting(flag: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"with {flag} VALUE"):
        check_fair({"a": config(), "b": config(), "c": config(flag, value)})


def test_methods_may_differ_in_all_that_makes_a_method() -> None:
    check_fair({"a": config(), "b": config("--rollout.group_size", "6", "--optim.lr", "1e-5", "--window.type", "all")})


def test_settings_cannot_change_on_the_way() -> None:
    check_unchanged("a", config(), config())
    with pytest.raises(ConfigError, match=r"has iterations = 40 for a, this call asks for 50, and 1 more\."):
        check_unchanged("a", config(), config("--iterations", "50", "--optim.lr", "1e-5"))
