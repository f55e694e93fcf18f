"""Rewards with stand-ins are the rewards' own classes, read by their own loaders, and say different things."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from mixgrpo.config.sections import RewardConfig
from mixgrpo.data.prompts import Prompt
from mixgrpo.dry.judge import StandInJudge
from mixgrpo.dry.rewards import swapping
from mixgrpo.dry.run import dry_run
from mixgrpo.errors import ConfigError, RewardError
from mixgrpo.rewards import make_reward
from mixgrpo.rewards.aesthetic import AestheticReward
from mixgrpo.rewards.base import Scores
from mixgrpo.rewards.clip_score import ClipScoreReward
from mixgrpo.rewards.geneval import GenEvalReward
from mixgrpo.rewards.hpsv2 import HpsV2Reward
from mixgrpo.rewards.http import HttpReward
from mixgrpo.rewards.imagereward import ImageReward
from mixgrpo.rewards.options import VlmOptions
from mixgrpo.rewards.pickscore import PickScoreReward
from mixgrpo.rewards.vlm import VlmReward
from tests.dry.settings_file import PLAIN, settings

NETWORKS = {
    "aesthetic": AestheticReward,
    "clip_score": ClipScoreReward,
    "hpsv2": HpsV2Reward,
    "imagereward": ImageReward,
    "pickscore": PickScoreReward,
}
NOWHERE = "http://127.0.0.1:9"
SCENE = {"tag": "counting", "include": [{"class": "tv remote", "count": 2, "color": "red"}]}
VLM = {"url": NOWHERE, "model": "judge"}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Six pictures of 16 x 16 pixels with soft colours."""
    coarse = torch.rand(6, 3, 3, 3, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")


def scored(reward: RewardConfig, folder: Path, images: torch.Tensor, prompts: list[Any]) -> tuple[Any, torch.Tensor]:
    with swapping((reward,), folder, device="cpu") as swaps:
        made = make_reward(reward.use or reward.name, swaps[0].reward.options)
        scores = made(images, prompts)
    return made, scores.values if isinstance(scores, Scores) else scores


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_read_by_its_own_loader_and_tells_pictures_apart(
    name: str, tmp_path: Path, images: torch.Tensor
) -> None:
    reward = RewardConfig(name="mine", use=name, options={"batch_size": 4, "dtype": "bfloat16", "device": "cuda:3"})
    made, scores = scored(reward, tmp_path, images, ["a red fox", "two blue hills"] * 3)
    assert type(made) is NETWORKS[name]
    assert scores.isfinite().all()
    assert len(set(scores.tolist())) > 3


def test_an_option_that_the_reward_does_not_have_is_found(tmp_path: Path, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="divide_bye"):
        scored(RewardConfig(name="pickscore", options={"divide_bye": 26}), tmp_path, images, ["a"] * 6)


def test_geneval_knows_the_classes_of_the_published_detector(tmp_path: Path, images: torch.Tensor) -> None:
    reward = RewardConfig(name="geneval", options={"partial": True, "counting_threshold": 0.0})
    made, scores = scored(reward, tmp_path, images, [Prompt("two red remotes", SCENE)] * 6)
    assert type(made) is GenEvalReward
    assert scores.isfinite().all()
    assert len(made._detector.labels) == 80
    unknown = Prompt("a unicorn", {"include": [{"class": "unicorn", "count": 1}]})
    with pytest.raises(RewardError, match="unicorn"):
        made(images, [unknown] * 6)


def test_http_asks_a_server_that_speaks_the_protocol(
    tmp_path: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRY_RUN_TOKEN", "a-long-secret")
    options = {"url": [NOWHERE, NOWHERE + "1"], "reward": "theirs", "token_env": "DRY_RUN_TOKEN", "retries": 0}
    made, scores = scored(RewardConfig(name="far", use="http", options=options), tmp_path, images, ["a"] * 6)
    assert type(made) is HttpReward
    torch.testing.assert_close(scores, images.mean(dim=(1, 2, 3)), rtol=0, atol=1 / 255)


def test_a_token_that_is_not_set_and_an_unknown_option_are_found(tmp_path: Path, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="NOT_SET_HERE"):
        scored(RewardConfig(name="http", options={"url": NOWHERE, "token_env": "NOT_SET_HERE"}), tmp_path, images, [])
    with pytest.raises(ConfigError, match="unknown option 'tokn'"):
        scored(RewardConfig(name="http", options={"url": NOWHERE, "tokn": "x"}), tmp_path, images, [])


def test_servers_are_gone_afterwards(tmp_path: Path) -> None:
    reward = RewardConfig(name="http", options={"url": NOWHERE})
    with swapping((reward,), tmp_path, device="cpu") as swaps:
        url = swaps[0].reward.options["url"][0]
        assert httpx2.get(f"{url}/health").status_code == 200
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/health")


@pytest.mark.parametrize(
    ("options", "distinct"),
    [
        ({}, 5),
        ({"template": "unified-reward", "normalise": True}, 5),
        ({"parse": "json:overall", "score_range": (0.0, 10.0)}, 5),
        ({"logprobs": True}, 2),
        ({"parse": r"<answer>\s*(\d+)\s*</answer>", "score_range": (0.0, 100.0)}, 5),
        ({"parse": r"^(?:Rating|Grade)\W+\[\[(\d\.\d)\]\]$", "score_range": (1.0, 9.0)}, 4),
        ({"parse": r"(?s)(?:Final|Overall)[^0-9]{2,}([1-5])(?:/5|\.)", "image_format": "webp"}, 2),
        ({"parse": r"\\boxed\{(-?\d+)\}", "score_range": (-50.0, 50.0), "template": "Rate {prompt}; {answer}?"}, 5),
    ],
)
def test_a_judge_answers_as_it_is_read(
    options: dict[str, Any], distinct: int, tmp_path: Path, images: torch.Tensor
) -> None:
    made, scores = scored(
        RewardConfig(name="vlm", options={**VLM, **options}), tmp_path, images, [Prompt("a fox", {"answer": 3})] * 6
    )
    assert type(made) is VlmReward
    low, high = (0.0, 1.0) if options.get("normalise") else options.get("score_range", (1.0, 5.0))
    assert ((scores >= low) & (scores <= high)).all()
    assert len(set(scores.tolist())) >= distinct


def test_a_parse_that_no_answer_can_be_made_up_for_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'mine'.*cannot make up an answer.*'\(seven\)'"):
        StandInJudge(VlmOptions.model_validate({**VLM, "parse": "(seven)"}), "mine")


def test_what_is_not_here_is_noted_and_what_is_no_network_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = RewardConfig(name="mine", use="my.module:factory", options={"a": 1})
    hps = RewardConfig(name="hpsv2", options={"path": "/nowhere/hps"})
    ocr, aesthetic = RewardConfig(name="ocr"), RewardConfig(name="aesthetic")
    with swapping((mine, hps, ocr, aesthetic), tmp_path, device="cpu") as swaps:
        assert [swap.reward for swap in swaps if swap.reward.name in ("mine", "ocr")] == [mine, ocr]
        assert "your own code, my.module:factory" in swaps[0].said
        assert swaps[1].notes == ("reward hpsv2: options.path '/nowhere/hps' is not here; the run needs it",)
        assert "sac+logos+ava1-l14-linearMSE.pth" in swaps[3].notes[0]


def test_prompts_of_the_hub_are_replaced_with_the_columns_that_the_rewards_read(tmp_path: Path) -> None:
    rewards = [
        {"name": "geneval", "use": "geneval"},
        {"name": "vlm", "use": "vlm", "options": {**VLM, "template": "Is {answer} in it? {prompt}"}},
    ]
    prompts = {"train": "hub:somebody/set:train", "heldout": "split:16", "column": "text"}
    done = dry_run(settings(tmp_path, rewards=rewards, prompts=prompts), tmp_path / "run")
    assert done.outcome.reason == "finished"
    assert "hub:somebody/set:train not in the cache" in done.notes[0]
    first = json.loads(Path(done.config.prompts.train).read_text().splitlines()[0])
    assert first.keys() == {"text", "tag", "include", "answer"}


def test_prompts_that_a_reward_cannot_use_are_found(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("a fox\na hill\na boat\n" * 1 + "\n".join(f"a thing {i}" for i in range(20)))
    prompts = {"train": str(tmp_path / "plain.txt"), "heldout": "split:4"}
    config = settings(tmp_path, rewards=[{"name": "geneval"}], prompts=prompts)
    with pytest.raises(RewardError, match="no column 'include'"):
        dry_run(config, tmp_path / "run")
    too_few = settings(tmp_path, rewards=PLAIN, prompts=prompts, prompts_per_iteration=20)
    with pytest.raises(ConfigError, match=r"prompts_per_iteration \(20\) must be left"):
        dry_run(too_few, tmp_path / "again")
