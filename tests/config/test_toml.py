"""What is written as TOML is read back as the same."""

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixgrpo.config.load import load_config
from mixgrpo.config.toml import config_toml, toml_value

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
LEAVES = TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=8)


@given(VALUES)
def test_a_value_survives(value: object) -> None:
    assert tomllib.loads(f"value = {toml_value(value)}\n") == {"value": value}


def test_numbers_are_written_as_people_write_them() -> None:
    assert [toml_value(x) for x in (1e-5, 1e-10, 2.5e-7, 1.0, 0.9, 12, True)] == [
        *("1e-5", "1e-10", "2.5e-7", "1.0", "0.9", "12", "true")
    ]
    assert toml_value(math.inf) == "inf"


def test_what_toml_does_not_have_is_an_error() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        toml_value({"a": None})


def test_options_and_lists_of_a_config_survive() -> None:
    args = ["--rewards.2.name", "mine", "--rewards.2.use", "a.b:c", "--rewards.2.options.text", 'say "so"']
    args += ["--rewards.2.options.size", "3", "--lora.target_modules", "to_q", "to_k"]
    config = load_config("flux-nano", args)
    raw = tomllib.loads(config_toml(config))
    assert raw["rewards"][2]["options"] == {"text": 'say "so"', "size": 3}
    assert raw["lora"]["target_modules"] == ["to_q", "to_k"]
    assert raw == config.model_dump(mode="json")
