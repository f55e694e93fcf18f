import subprocess
import sys

import pytest
import torch
from reward_servers import HEALTH, Said, serving

from mixgrpo.errors import ConfigError, MissingExtraError
from mixgrpo.rewards import REWARDS, Reward, make_reward

OWN_REWARDS = """
import torch

class Redness:
    name = "redness"

    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, images, prompts):
        return images[:, 0].mean(dim=(1, 2)) * self.scale

def greenness():
    return lambda images, prompts: images[:, 1].mean(dim=(1, 2))

def score(images, prompts):
    return images.mean(dim=(1, 2, 3))

def nothing():
    return None

constant = 3
"""


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """A folder with a user's module, from which a console script is started."""
    (tmp_path / "own_rewards.py").write_text(OWN_REWARDS)
    (tmp_path / "broken_rewards.py").write_text("import a_package_that_is_not_there")
    (tmp_path / "garbled_rewards.py").write_text("def factory(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for module in ("own_rewards", "broken_rewards", "garbled_rewards"):
        sys.modules.pop(module, None)


NEED_WEIGHTS = {"aesthetic", "clip_score", "geneval", "hpsv2", "imagereward", "pickscore"}
"""Rewards that cannot be made without files from the hub; their own tests make them from tiny ones."""


@pytest.mark.parametrize("name", sorted(REWARDS.keys() - NEED_WEIGHTS))
def test_every_built_in_reward_can_be_made_and_is_called_by_its_name(name):
    with serving(lambda asked: Said({}), get=lambda asked: Said({**HEALTH, "data": [{"id": "judge"}]})) as served:
        needed = {"http": {"url": served.url}, "vlm": {"url": served.url, "model": "judge"}}
        reward = make_reward(name, needed.get(name, {}))
    assert isinstance(reward, Reward)
    assert reward.name == name


def test_naming_the_rewards_does_not_load_torch():
    code = "import sys, mixgrpo.rewards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_reward_of_ones_own_is_found_in_the_working_directory_and_gets_its_options():
    reward = make_reward("own_rewards:Redness", {"scale": 2.0})
    assert reward.name == "redness"
    assert reward(torch.full((1, 3, 2, 2), 0.25), ["x"]).tolist() == [0.5]


def test_a_factory_may_return_a_plain_function():
    reward = make_reward("own_rewards:greenness", {})
    assert reward.name == "own_rewards:greenness"
    assert reward(torch.full((1, 3, 2, 2), 0.25), ["x"]).tolist() == [0.25]


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        (
            "ocrr",
            {},
            r"no reward 'ocrr'. Did you mean 'ocr'\? Built in are: aesthetic, brightness, .*jpeg, ocr",
        ),
        ("beauty", {}, r"no reward 'beauty'. Built in are: .*package\.module:factory"),
        ("no_such_module:factory", {}, "'no_such_module' cannot be imported"),
        ("broken_rewards:factory", {}, "'broken_rewards' cannot be imported.*a_package_that_is_not_there"),
        ("garbled_rewards:factory", {}, "'garbled_rewards' cannot be imported"),
        ("own_rewards:redness", {}, r"has no 'redness'. Did you mean 'Redness'\?"),
        ("own_rewards:constant", {}, "'constant' is not callable"),
        ("own_rewards:nothing", {}, "its factory returned None"),
        ("own_rewards:score", {}, "must name a factory"),
        ("own_rewards:Redness", {"size": 1}, r"cannot be made with the options \{'size': 1\}"),
        ("own_rewards:", {}, "not an import path"),
        ("own/rewards.py:Redness", {}, "not an import path"),
        ("ocr", {"thread": 2}, r"'ocr' cannot be made with the options \{'thread': 2\}"),
        ("ocr", {"threads": 0}, "threads must be at least 1"),
        ("jpeg", {"quality": 101}, "quality must be from 1 to 95"),
    ],
)
def test_every_mistake_in_naming_a_reward_ends_in_a_clear_message(use, options, message):
    with pytest.raises(ConfigError, match=message):
        make_reward(use, options)


def test_the_ocr_reward_without_its_package_says_how_to_install_it(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    from mixgrpo.rewards import ocr

    def not_installed(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(ocr, "files", not_installed)
    ocr.load_recogniser.cache_clear()
    with pytest.raises(MissingExtraError, match=r"the ocr reward needs the package 'rapidocr'.*mixgrpo\[ocr\]"):
        make_reward("ocr", {})
