"""Rewards of images on clips, rewards of clips on images, and what becomes of faults there."""

import gc
import time
import weakref

import pytest
import torch

from mixgrpo.errors import RewardError
from mixgrpo.rewards import Scores, make_reward
from mixgrpo.rewards.scorer import Scorer

# 2 clips of 3 frames; the brightness of each frame, and so the mean of each clip, is known
LEVELS = torch.tensor([[0.0, 0.3, 0.9], [0.5, 0.6, 0.4]])
CLIPS = LEVELS[:, :, None, None, None].expand(2, 3, 3, 4, 4).contiguous()
PROMPTS = ["first", "second"]


class Reward:
    def __init__(self, score, *, takes_video=None):
        self.name, self.score, self.seen = "mine", score, []
        if takes_video is not None:
            self.takes_video = takes_video

    def __call__(self, images, prompts):
        self.seen.append((tuple(images.shape), list(prompts)))
        return self.score(images)


def means(images):
    return images.flatten(1).mean(1)


def scored(reward, images=CLIPS, prompts=PROMPTS):
    with Scorer({"mine": reward}, timeout=20.0) as scorer:
        return scorer.submit(images, prompts).result()


@pytest.mark.parametrize("takes_video", [None, False])
def test_a_reward_of_images_gets_each_clips_frames_with_its_prompt_and_their_mean_counts(takes_video):
    reward = Reward(means, takes_video=takes_video)
    table = scored(reward)
    assert reward.seen == [((3, 3, 4, 4), ["first"] * 3), ((3, 3, 4, 4), ["second"] * 3)]
    assert table.values["mine"].tolist() == pytest.approx([0.4, 0.5])
    assert table.failures == {"mine": []}


def test_a_built_in_reward_scores_clips():
    assert scored(make_reward("brightness")).values["mine"].tolist() == pytest.approx([0.4, 0.5])


def test_details_are_means_over_the_frames_too():
    def score(images):
        return Scores(means(images), {"dark": (means(images) < 0.35).float()})

    table = scored(Reward(score))
    assert table.details["mine/dark"].tolist() == pytest.approx([2 / 3, 0.0])


def test_a_reward_that_takes_video_gets_the_clips():
    reward = Reward(lambda clips: (clips[:, -1] - clips[:, 0]).flatten(1).mean(1), takes_video=True)
    table = scored(reward)
    assert reward.seen == [((2, 3, 3, 4, 4), PROMPTS)]
    assert table.values["mine"].tolist() == pytest.approx([0.9, -0.1])


def test_a_reward_that_takes_video_gets_images_as_clips_of_one_frame():
    reward = Reward(lambda clips: clips.flatten(1).mean(1), takes_video=True)
    table = scored(reward, CLIPS[:, 1])
    assert reward.seen == [((2, 1, 3, 4, 4), PROMPTS)]
    assert table.values["mine"].tolist() == pytest.approx([0.3, 0.6])


def test_images_reach_a_reward_of_images_in_one_call_as_they_are():
    reward = Reward(means)
    scored(reward, CLIPS[:, 1])
    assert reward.seen == [((2, 3, 4, 4), PROMPTS)]


def test_a_plain_function_can_take_video(tmp_path, monkeypatch):
    (tmp_path / "clip_rewards.py").write_text(
        "def frames(clips, prompts):\n    return [float(clip.ndim) for clip in clips]\n\n\n"
        "frames.takes_video = True\n\n\ndef make_frames():\n    return frames\n"
    )
    monkeypatch.chdir(tmp_path)
    assert scored(make_reward("clip_rewards:make_frames")).values["mine"].tolist() == [4.0, 4.0]


def test_a_clip_with_a_frame_that_has_no_score_has_none():
    def score(images):
        return torch.where(means(images) > 0.8, torch.nan, means(images))

    table = scored(Reward(score))
    assert table.values["mine"][0].isnan()
    assert table.values["mine"][1].item() == pytest.approx(0.5)
    assert table.failed == {"mine": 1}
    assert "first" in table.failures["mine"][0]


@pytest.mark.parametrize("takes_video", [False, True])
def test_a_clip_with_a_pixel_that_is_not_finite_has_no_score(takes_video):
    clips = CLIPS.clone()
    clips[1, 2, 0, 0, 0] = float("inf")
    table = scored(Reward(lambda images: torch.ones(len(images)), takes_video=takes_video), clips)
    assert table.values["mine"][0] == 1.0
    assert table.values["mine"][1].isnan()


def test_a_clip_on_which_a_reward_raises_does_not_cost_the_others():
    def score(images):
        if means(images).max() > 0.8:
            raise OSError("too bright")
        return means(images)

    table = scored(Reward(score))
    assert table.values["mine"][0].isnan()
    assert table.values["mine"][1].item() == pytest.approx(0.5)
    assert "too bright" in table.failures["mine"][0]


def test_a_reward_that_returns_one_number_per_clip_instead_of_per_frame_is_wrong_as_such():
    with pytest.raises(RewardError, match=r"shape \[3\] or 3 floats"):
        scored(Reward(lambda images: torch.zeros(1)))


@pytest.mark.parametrize("fails", [False, True])
def test_scores_that_wait_do_not_keep_the_pictures(fails):
    def score(images):
        if fails:
            time.sleep(0.3)
        return means(images)

    numbers = CLIPS.numpy().copy()  # numpy's arrays, unlike torch's storages, tell when they go
    gone = weakref.ref(numbers)
    with Scorer({"mine": Reward(score)}, timeout=0.1 if fails else 20.0) as scorer:
        pending = scorer.submit(torch.from_numpy(numbers), PROMPTS)
        del numbers
        assert pending.result().failed == {"mine": 2 if fails else 0}
        time.sleep(0.8 if fails else 0.1)  # an overdue call keeps what it was called with until it returns
        gc.collect()
        assert gone() is None
        assert pending.result().values["mine"].isnan().all() == fails
