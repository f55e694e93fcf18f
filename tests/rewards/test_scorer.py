import subprocess
import sys
import threading
import time

import pytest
import torch

from mixgrpo.errors import ConfigError, RewardError
from mixgrpo.rewards import Scores, make_reward
from mixgrpo.rewards.base import NamedReward
from mixgrpo.rewards.scorer import Scorer

IMAGES = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 8, 8).contiguous()
PROMPTS = ["a", "b", "c", "d"]
BRIGHTNESS = pytest.approx([0.0, 1 / 3, 2 / 3, 1.0], abs=1e-5)


def scorer(timeout=20.0, workers=2, **functions):
    rewards = {name: NamedReward(name, function) for name, function in functions.items()}
    return Scorer({"brightness": make_reward("brightness"), **rewards}, timeout=timeout, workers=workers)


def test_scores_details_and_failures_of_all_rewards_come_together():
    def halves(images, prompts):
        return Scores(torch.full((4,), 0.5), {"exact": torch.tensor([0.0, 1.0, 0.0, 1.0])})

    with scorer(halves=halves) as running:
        table = running.submit(IMAGES, PROMPTS).result()
    assert table.values["brightness"].tolist() == BRIGHTNESS
    assert table.values["halves"].tolist() == [0.5] * 4
    assert list(table.details) == ["halves/exact"]
    assert table.details["halves/exact"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert table.failures == {"brightness": [], "halves": []}
    assert table.failed == {"brightness": 0, "halves": 0}


def test_only_the_rewards_that_are_named_are_asked():
    calls = []

    def noted(images, prompts):
        calls.append(len(images))
        return torch.zeros(len(images))

    with scorer(noted=noted) as running:
        table = running.submit(IMAGES, PROMPTS, rewards=["brightness"]).result()
        assert (set(table.values), set(table.failures), calls) == ({"brightness"}, {"brightness"}, [])
        assert set(running.submit(IMAGES, PROMPTS).result().values) == {"brightness", "noted"}
        for names in (["brightness", "nobody"], []):
            with pytest.raises(ValueError, match="asked for the rewards"):
                running.submit(IMAGES, PROMPTS, rewards=names)
    assert calls == [4]


def test_batches_come_back_in_the_order_they_were_handed_over():
    with scorer() as running:
        pending = [running.submit(IMAGES[i : i + 1], PROMPTS[:1]) for i in (2, 0, 3, 1)]
        means = [scores.result().values["brightness"].item() for scores in reversed(pending)]
    assert means == pytest.approx([1 / 3, 1.0, 0.0, 2 / 3], abs=1e-5)


def test_submitting_returns_at_once_and_scoring_goes_on_meanwhile():
    go_on = threading.Event()

    def waits(images, prompts):
        go_on.wait(20)
        return [1.0] * len(images)

    with scorer(waits=waits) as running:
        pending = running.submit(IMAGES, PROMPTS)
        assert not pending.done()  # would not be reached if `submit` waited
        go_on.set()
        assert pending.result().values["waits"].tolist() == [1.0] * 4
        assert pending.done()


def test_one_bad_picture_costs_only_its_own_score():
    calls = []

    def dislikes_c(images, prompts):
        calls.append(list(prompts))
        if "c" in prompts:
            raise ZeroDivisionError("cannot score this")
        return Scores(images.mean(dim=(1, 2, 3)), {"seen": torch.ones(len(images))})

    with scorer(picky=dislikes_c) as running:
        table = running.submit(IMAGES, PROMPTS).result()
    assert calls == [PROMPTS, ["a"], ["b"], ["c"], ["d"]]
    assert table.values["picky"].isnan().tolist() == [False, False, True, False]
    assert table.values["picky"][[0, 1, 3]].tolist() == pytest.approx([0.0, 1 / 3, 1.0], abs=1e-5)
    assert table.details["picky/seen"].isnan().tolist() == [False, False, True, False]
    assert table.failures["picky"] == ["ZeroDivisionError: cannot score this (prompt: 'c')"]
    assert table.failed == {"brightness": 0, "picky": 1}
    assert table.values["brightness"].tolist() == BRIGHTNESS


def test_a_reward_that_always_raises_leaves_the_others_right():
    def broken(images, prompts):
        raise SystemExit("out of credit")

    with scorer(broken=broken) as running:
        for _ in range(2):
            table = running.submit(IMAGES, PROMPTS).result()
            assert table.values["broken"].isnan().all()
            assert len(table.failures["broken"]) == 4
            assert "SystemExit: out of credit" in table.failures["broken"][0]
            assert table.values["brightness"].tolist() == BRIGHTNESS


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_a_failure_never_zero(bad):
    with scorer(odd=lambda images, prompts: [0.5, bad, 0.5, 0.5]) as running:
        table = running.submit(IMAGES, PROMPTS).result()
    assert table.values["odd"].isnan().tolist() == [False, True, False, False]
    assert table.failures["odd"] == ["no finite score (prompt: 'b')"]


def test_a_reward_may_say_itself_why_an_image_has_no_score():
    def says(images, prompts):
        return Scores(torch.tensor([0.5, float("nan"), 0.5, 0.5]), {}, ["the judge was away"])

    with scorer(says=says) as running:
        table = running.submit(IMAGES, PROMPTS).result()
    assert table.failures["says"] == ["the judge was away"]
    assert table.failed == {"brightness": 0, "says": 1}


def test_an_image_that_has_no_score_when_asked_about_alone_is_named_too():
    def odd(images, prompts):
        if len(images) > 1:
            raise MemoryError("too many at once")
        return [float("nan") if prompts == ["b"] else 0.5]

    with scorer(odd=odd) as running:
        table = running.submit(IMAGES, PROMPTS).result()
    assert table.failures["odd"] == ["no finite score (prompt: 'b')"]
    assert table.failed == {"brightness": 0, "odd": 1}


def test_a_picture_with_nan_pixels_fails_in_every_reward():
    images = IMAGES.clone()
    images[2, 0, 0, 0] = float("nan")
    with scorer(constant=lambda images, prompts: [1.0] * len(images)) as running:
        table = running.submit(images, PROMPTS).result()
    assert table.failed == {"brightness": 1, "constant": 1}
    assert table.values["constant"].isnan().tolist() == [False, False, True, False]


def test_a_reward_that_does_not_return_a_score_per_image_is_an_error_that_names_it():
    with scorer(mean=lambda images, prompts: images.mean()) as running:
        pending = running.submit(IMAGES, PROMPTS)
        with pytest.raises(RewardError, match=r"'mean' returned values of shape \[\] for 4 images"):
            pending.result()


def test_a_time_out_costs_its_batch_and_only_of_its_own_reward():
    go_on = threading.Event()

    def hangs(images, prompts):
        go_on.wait(20)
        return [1.0] * len(images)

    with scorer(timeout={"brightness": 20.0, "slow": 0.2}, workers=1, slow=hangs) as running:
        for _ in range(3):  # those behind the call that hangs fail as well, each within its own time
            table = running.submit(IMAGES, PROMPTS).result()
            assert table.values["slow"].isnan().all()
            assert table.failures["slow"] == ["no answer within 0.2 s (4 images not scored)"]
            assert table.values["brightness"].tolist() == BRIGHTNESS  # although there is one place for both
        go_on.set()
        deadline = time.monotonic() + 10
        while running.submit(IMAGES, PROMPTS).result().failed["slow"]:  # until the late call has come back
            assert time.monotonic() < deadline


def test_waiting_for_another_rewards_place_is_not_counted_as_time():
    def slow(images, prompts):
        time.sleep(0.4)
        return [1.0] * len(images)

    functions = {f"slow{i}": slow for i in range(4)}
    timeout = dict.fromkeys(["brightness", *functions], 1.3)  # enough for one or two of them, not for all
    with scorer(timeout=timeout, workers=1, **functions) as running:
        table = running.submit(IMAGES, PROMPTS).result()
    assert sum(table.failed.values()) == 0


def test_a_reward_is_called_by_one_thread_at_a_time_and_rewards_by_several():
    inside, most, lock = {"x": 0, "y": 0}, {"x": 0, "y": 0, "both": 0}, threading.Lock()

    def counting(name):
        def score(images, prompts):
            with lock:
                inside[name] += 1
                most[name] = max(most[name], inside[name])
                most["both"] = max(most["both"], sum(inside.values()))
            time.sleep(0.05)
            with lock:
                inside[name] -= 1
            return [0.0] * len(images)

        return score

    with scorer(x=counting("x"), y=counting("y"), workers=3) as running:
        for pending in [running.submit(IMAGES, PROMPTS) for _ in range(4)]:
            pending.result()
    assert most == {"x": 1, "y": 1, "both": 2}


def test_rewards_are_called_without_gradients():
    seen = []

    def look(images, prompts):
        seen.append((torch.is_grad_enabled(), images.requires_grad))
        return [0.0] * len(images)

    with scorer(look=look) as running:
        running.submit(IMAGES.clone().requires_grad_(), PROMPTS).result()
    assert seen == [(False, False)]


def test_closing_fails_what_is_still_waiting():
    go_on = threading.Event()

    def hangs(images, prompts):
        go_on.wait(20)
        return [1.0] * len(images)

    running = scorer(hangs=hangs)
    first, second = running.submit(IMAGES, PROMPTS), running.submit(IMAGES, PROMPTS)
    running.close()
    for pending in (first, second):
        assert pending.result().failures["hangs"] == ["the scorer was closed (4 images not scored)"]
    with pytest.raises(RuntimeError, match="closed"):
        running.submit(IMAGES, PROMPTS)
    go_on.set()


def test_a_call_that_never_returns_does_not_keep_the_program_alive():
    code = """
import time, torch
from mixgrpo.rewards.base import NamedReward
from mixgrpo.rewards.scorer import Scorer
scorer = Scorer({"hangs": NamedReward("hangs", lambda images, prompts: time.sleep(3600))}, timeout=0.1)
print(scorer.submit(torch.zeros(1, 3, 4, 4), ["x"]).result().failures["hangs"])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "no answer within 0.1 s" in ended.stdout


def test_mistakes_in_setting_up_are_found_at_once():
    reward = make_reward("brightness")
    with pytest.raises(ConfigError, match="'brightness' needs a time-out"):
        Scorer({"brightness": reward}, timeout={"other": 1.0})
    with pytest.raises(ConfigError, match="above 0 seconds"):
        Scorer({"brightness": reward}, timeout=0.0)
    with pytest.raises(ConfigError, match="at least 1 worker"):
        Scorer({"brightness": reward}, workers=0)
    with scorer() as running, pytest.raises(ValueError, match="4 images and 2 prompts"):
        running.submit(IMAGES, PROMPTS[:2])
