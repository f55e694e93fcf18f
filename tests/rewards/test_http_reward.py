"""The reward `http` against servers that do well, badly, late or not at all."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import torch
from reward_servers import Asked, Clause, Said, Served, grey_of, in_turn, scores, serving
from torch import Tensor

from mixgrpo.config.load import dump_resolved, load_config
from mixgrpo.errors import ConfigError, RewardError
from mixgrpo.rewards import make_reward
from mixgrpo.rewards.base import NamedReward, Scores, columns_of
from mixgrpo.rewards.http import HttpReward
from mixgrpo.rewards.options import HttpOptions
from mixgrpo.rewards.scorer import Scorer
from mixgrpo.rewards.server import RewardServer


@pytest.fixture
def pauses() -> list[float]:
    """The seconds that a client would have slept."""
    return []


def greys(*values: int) -> Tensor:
    """Images of one grey each, in 8 bits, as float32 [B, 3, 4, 6]."""
    return (torch.tensor(values, dtype=torch.float32) / 255)[:, None, None, None].expand(-1, 3, 4, 6).contiguous()


def snapshots(count: int, height: int = 20, width: int = 30) -> Tensor:
    """Random images with 8 bits per colour, as a saved file holds them."""
    levels = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(1))
    return levels.to(torch.float32) / 255


def reward_at(*servers: Served | str, pauses: list[float] | None = None, **options: object) -> HttpReward:
    urls = tuple(server if isinstance(server, str) else server.url for server in servers)
    sleep = time.sleep if pauses is None else pauses.append
    return HttpReward(HttpOptions.model_validate({"url": urls, "reward": "mine", **options}), sleep=sleep)


@contextmanager
def real_server(**rewards: object) -> Iterator[str]:
    server = RewardServer("127.0.0.1", 0, rewards)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.close()


def refused() -> str:
    """An address where nobody listens."""
    with serving(lambda asked: Said({})) as served:
        return served.url


def by_brightness(asked: Asked) -> Said:
    return scores([grey / 255 for grey in grey_of(asked)])


# through the real server


@pytest.mark.parametrize("image_format", ["png", "webp"])
@pytest.mark.parametrize("name", ["brightness", "jpeg", "colors"])
def test_scores_through_http_are_those_of_the_local_reward_exactly(name: str, image_format: str) -> None:
    images, prompts = snapshots(6), ['the word "A" in red on white'] * 6
    local = make_reward(name)(images, prompts)
    values, details = (local.values, local.details) if isinstance(local, Scores) else (local, {})
    with real_server(**{name: make_reward(name)}) as url:
        reward = make_reward("http", {"url": url, "image_format": image_format})
        found = reward(images, prompts)
    assert found.values.tolist() == values.tolist()
    assert {key: figures.tolist() for key, figures in found.details.items()} == {
        key: figures.tolist() for key, figures in details.items()
    }
    assert found.failures == []


def test_images_are_rounded_to_8_bits_on_the_way() -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 1.2 - 0.1
    seen: list[Tensor] = []

    def keep(pictures: Tensor, prompts: list[str]) -> list[float]:
        seen.append(pictures)
        return [0.0] * len(pictures)

    with real_server(mine=NamedReward("mine", keep)) as url:
        reward_at(url)(images, ["x"] * 4)
    levels = (images.double().clamp(0, 1) * 255).round()
    assert torch.equal(seen[0], (levels / 255).float())
    assert seen[0].is_contiguous()


def test_columns_and_prompts_reach_the_reward_of_the_server() -> None:
    def length(pictures: Tensor, prompts: list[str]) -> list[float]:
        return [100 * len(prompt) + columns_of(prompt).get("target", -1) for prompt in prompts]

    one, two = Clause("ab", target=3, words=["ä", {"deep": None}]), Clause("c")
    with real_server(mine=NamedReward("mine", length)) as url:
        found = reward_at(url)(greys(1, 2, 3), [one, two, "défg"])
    assert found.values.tolist() == [203, 99, 399]


def test_only_prompts_with_columns_send_any() -> None:
    told = Clause("ab", a=1)
    with serving(by_brightness) as served:
        reward = reward_at(served)
        reward(greys(1, 2), ["x", "y"])
        reward(greys(1, 2), ["x", told])
    assert "columns" not in served.asked[0].body
    assert served.asked[1].body["columns"] == [{}, {"a": 1}]


def test_a_column_that_json_cannot_say_costs_its_request() -> None:
    odd = Clause("ab", when=datetime.now(UTC))
    with serving(by_brightness) as served:
        found = reward_at(served, batch_size=1)(greys(0, 51), [odd, "x"])
    assert found.values.isnan().tolist() == [True, False]
    assert "cannot be sent as JSON" in found.failures[0]


def test_one_bad_picture_costs_only_its_own_score_across_the_wire() -> None:
    def picky(pictures: Tensor, prompts: list[str]) -> Scores:
        if pictures.amin() == 0:
            raise ZeroDivisionError("too dark for me")
        return Scores(pictures.mean((1, 2, 3)), {"seen": torch.ones(len(pictures))})

    with real_server(mine=NamedReward("mine", picky)) as url:
        found = reward_at(url)(greys(51, 0, 102), ["a", "b", "c"])
    assert found.values.isnan().tolist() == [False, True, False]
    assert found.details["seen"].isnan().tolist() == [False, True, False]
    assert found.failures == ["ZeroDivisionError: too dark for me (prompt: 'b')"]


# what is sent, and in what order it comes back


def test_requests_hold_a_batch_and_results_keep_their_order() -> None:
    def first_comes_last(asked: Asked) -> Said:
        time.sleep(0.2 if 10 in grey_of(asked) else 0.0)
        return scores([float(grey) for grey in grey_of(asked)], details={"twice": [2 * g for g in grey_of(asked)]})

    with serving(first_comes_last) as served:
        found = reward_at(served, batch_size=2, concurrent=3)(greys(10, 20, 30, 40, 50), list("abcde"))
    assert found.values.tolist() == [10, 20, 30, 40, 50]
    assert found.details["twice"].tolist() == [20, 40, 60, 80, 100]
    assert sorted("".join(asked.body["prompts"]) for asked in served.asked) == ["ab", "cd", "e"]
    assert {(asked.body["version"], asked.body["reward"], asked.path) for asked in served.asked} == {
        (1, "mine", "/score")
    }


@pytest.mark.parametrize("bound", [1, 3])
def test_no_more_requests_are_open_than_allowed(bound: int) -> None:
    together = threading.Barrier(bound, timeout=20)

    def wait_for_the_others(asked: Asked) -> Said:
        together.wait()
        return by_brightness(asked)

    with serving(wait_for_the_others) as served:
        found = reward_at(served, batch_size=1, concurrent=bound)(greys(*range(9)), ["x"] * 9)
    assert not found.values.isnan().any()
    assert (len(served.asked), served.at_once) == (9, bound)


def test_a_picture_that_is_not_finite_is_not_sent() -> None:
    images = greys(10, 20, 30)
    images[1, 0, 0, 0] = float("nan")
    with serving(by_brightness) as served:
        reward = reward_at(served)
        found = reward(images, ["a", "b", "c"])
        nothing = reward(images[1:2], ["b"])
    assert found.values.isnan().tolist() == [False, True, False]
    assert found.failures == nothing.failures == ["a pixel is not finite (prompt: 'b')"]
    assert nothing.values.isnan().all()
    assert [grey_of(asked) for asked in served.asked] == [[10, 30]]


# servers that fail


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (Said(b"<html>hello</html>"), "not that of protocol 1: Invalid JSON"),
        (Said(b""), "not that of protocol 1: Invalid JSON"),
        (Said([0.5, 0.5]), "not that of protocol 1"),
        (Said({"values": [0.5, 0.5]}), "scores: Field required"),
        (scores([0.5]), "has 1 scores for 2 images"),
        (scores([0.5, 0.5, 0.5]), "has 3 scores for 2 images"),
        (scores([0.5, "0.5"]), "scores.1: Input should be a valid number"),
        (scores([0.5, True]), "scores.1: Input should be a valid number"),
        (scores([0.5, 0.5], details={"exact": [1.0]}), "has 1 exact for 2 images"),
        (Said({"error": {"field": "images[0]", "message": "is broken"}}, 400), "answered 400: images[0]: is broken"),
        (Said(b"nothing here", 404), "answered 404: nothing here"),
        (Said(b"", 302, {"Location": "http://elsewhere/"}), "it has moved to http://elsewhere/"),
    ],
)
def test_an_answer_that_is_no_score_fails_the_images_of_its_request(said: Said, message: str) -> None:
    with serving(lambda asked: said if 10 in grey_of(asked) else by_brightness(asked)) as served:
        found = reward_at(served, batch_size=2)(greys(10, 20, 51), ["a", "b", "c"])
    assert found.values.isnan().tolist() == [True, True, False]
    assert found.values[2] == pytest.approx(0.2)
    assert message in found.failures[0]
    assert found.failures[0].endswith("(2 images not scored)")
    assert len(found.failures) == 1
    assert len(served.asked) == 2  # nothing of this is tried again


@pytest.mark.parametrize("nothing", ["null", "NaN", "Infinity", "-Infinity"])
def test_an_image_without_a_score_is_nan_and_never_zero(nothing: str) -> None:
    said = Said(f'{{"scores": [0.5, {nothing}], "details": {{"exact": [null, 1]}}}}'.encode())
    with serving(lambda asked: said) as served, Scorer({"far": reward_at(served)}) as scorer:
        table = scorer.submit(greys(1, 2), ["a", "b"]).result()
    assert table.values["far"].isnan().tolist() == [False, True]
    assert table.details["far/exact"].isnan().tolist() == [True, False]
    assert table.failures["far"] == ["the server could not score it (prompt: 'b')"]


def test_a_request_that_fails_is_not_asked_again_image_by_image() -> None:
    with serving(lambda asked: Said(b"no", 404)) as served, Scorer({"far": reward_at(served)}) as scorer:
        table = scorer.submit(greys(1, 2), ["a", "b"]).result()
    assert table.failed == {"far": 2}
    assert len(table.failures["far"]) == len(served.asked) == 1


def test_a_server_error_is_tried_again_with_growing_pauses(pauses: list[float]) -> None:
    with serving(in_turn(Said(b"", 500), Said(b"", 502), scores([0.25]))) as served:
        found = reward_at(served, pauses=pauses)(greys(1), ["a"])
    assert found.values.tolist() == [0.25]
    assert len(served.asked) == 3
    assert [0.25 <= pauses[0] <= 0.5, 0.5 <= pauses[1] <= 1.0, len(pauses) == 2] == [True] * 3


def test_tries_are_bounded(pauses: list[float]) -> None:
    with serving(lambda asked: Said(b"out of memory", 503)) as served:
        found = reward_at(served, pauses=pauses, retries=4)(greys(1), ["a"])
    assert found.values.isnan().all()
    assert "answered 503: out of memory (5 tries)" in found.failures[0]
    assert len(served.asked) == 5
    assert len(pauses) == 4


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_kept_to(status: int, pauses: list[float]) -> None:
    with serving(in_turn(Said(b"", status, {"Retry-After": "7"}), scores([0.25]))) as served:
        found = reward_at(served, pauses=pauses)(greys(1), ["a"])
    assert found.values.tolist() == [0.25]
    assert pauses == [pytest.approx(7, abs=0.5)]


def test_retry_after_may_be_a_date(pauses: list[float]) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    with serving(in_turn(Said(b"", 429, {"Retry-After": date}), scores([0.25]))) as served:
        reward_at(served, pauses=pauses)(greys(1), ["a"])
    assert pauses == [pytest.approx(19, abs=1.5)]


def test_nobody_waits_for_an_hour(pauses: list[float]) -> None:
    with serving(lambda asked: Said(b"", 429, {"Retry-After": "3600"})) as served:
        found = reward_at(served, pauses=pauses)(greys(1), ["a"])
    assert "asks to come back in 3600 s, which is too long" in found.failures[0]
    assert (len(served.asked), pauses) == (1, [])


def test_a_server_that_is_too_slow_fails_its_images_once(pauses: list[float]) -> None:
    def slow(asked: Asked) -> Said:
        time.sleep(0.6 if 10 in grey_of(asked) else 0.0)
        return by_brightness(asked)

    with serving(slow) as served:
        found = reward_at(served, pauses=pauses, timeout=0.3, batch_size=1, concurrent=1)(greys(10, 51), ["a", "b"])
    assert found.values.isnan().tolist() == [True, False]
    assert "gave no answer within 0.3 s" in found.failures[0]
    assert len(served.asked) == 2


def test_a_server_that_is_gone_is_tried_a_bounded_number_of_times_then_once_a_request(pauses: list[float]) -> None:
    with serving(by_brightness) as served:
        reward = reward_at(served, pauses=pauses, batch_size=1, concurrent=1)
    found = reward(greys(1, 2, 3), ["a", "b", "c"])
    assert found.values.isnan().all()
    assert all("cannot be reached" in text and "refused" in text for text in found.failures)
    assert "(4 tries)" in found.failures[0]
    assert len(pauses) == 3  # all of the first request
    assert "tries" not in found.failures[1]


def test_no_server_at_all_is_an_error_at_once() -> None:
    with pytest.raises(RewardError, match=r"'http': http://127.0.0.1:\d+ cannot be reached .*refused.*; http://"):
        reward_at(refused(), refused())


def test_a_dead_server_among_others_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    dead = refused()
    with serving(by_brightness) as one, serving(by_brightness) as other:
        reward = reward_at(one, dead, other, batch_size=1)
        found = reward(greys(*range(12)), ["x"] * 12)
    assert [text for text in caplog.messages if dead in text] == caplog.messages
    assert len(caplog.messages) == 1
    assert "cannot be reached" in caplog.messages[0]
    assert not found.values.isnan().any()
    assert found.failures == []
    assert len(one.asked) + len(other.asked) == 12
    assert min(len(one.asked), len(other.asked)) >= 4  # both take their turn


def test_a_server_that_dies_is_replaced_without_a_pause(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with serving(by_brightness) as stays:
        with serving(by_brightness) as leaves:
            reward = reward_at(leaves, stays, pauses=pauses, batch_size=1, concurrent=1)
            reward(greys(1, 2), ["a", "b"])
        found = reward(greys(51, 102, 153, 204), ["a", "b", "c", "d"])
    assert found.values.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert (len(leaves.asked), len(stays.asked), pauses) == (1, 5, [])
    assert len(caplog.messages) == 1


def test_a_busy_server_is_passed_over_while_another_is_free(pauses: list[float]) -> None:
    with serving(lambda asked: Said(b"", 429, {"Retry-After": "9"})) as busy, serving(by_brightness) as free:
        found = reward_at(busy, free, pauses=pauses, batch_size=1, concurrent=1)(greys(*range(6)), ["x"] * 6)
    assert not found.values.isnan().any()
    assert (len(busy.asked), len(free.asked), pauses) == (1, 6, [])


# the token


TOKEN = "s3cret-of-the-server"


def test_the_token_is_sent_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_TOKEN", f"{TOKEN}\n")
    options = {"url": "", "reward": "mine", "token_env": "JUDGE_TOKEN"}

    def echo(asked: Asked) -> Said:
        heard = asked.headers["Authorization"]
        if asked.body["prompts"] == ["b"]:
            return scores([None], failures=[f"I do not like {heard}"])
        return Said({"error": {"message": f"{'-' * 190}{heard}"}}, 400)  # is cut short inside the token

    with serving(echo) as served:
        options["url"] = served.url
        reward = make_reward("http", options)
        with Scorer({"far": reward}) as scorer:
            failures = [scorer.submit(greys(1), [prompt]).result().failures["far"][0] for prompt in ("a", "b")]
    assert served.asked[0].headers["Authorization"] == f"Bearer {TOKEN}"
    assert "Bearer ***" in failures[0]
    assert failures[1] == "I do not like Bearer ***"
    config = load_config("flux-nano")
    first = config.rewards[0].model_copy(update={"options": options})
    dump_resolved(config.model_copy(update={"rewards": (first, *config.rewards[1:])}), tmp_path / "resolved.json")
    written = (tmp_path / "resolved.json").read_text()
    assert "JUDGE_TOKEN" in written
    for text in (*failures, caplog.text, written, repr(reward), str(vars(reward))):
        assert TOKEN[:3] not in text


def test_a_server_that_wants_another_token_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", TOKEN)
    with serving(by_brightness, get=lambda asked: Said({"error": {"message": f"bad {TOKEN}"}}, 401)) as served:
        with pytest.raises(ConfigError, match=r"does not take the token \(bad \*\*\*\)"):
            reward_at(served, token_env="JUDGE_TOKEN")
        with pytest.raises(ConfigError, match="wants a token: name its variable with token_env"):
            reward_at(served)


# mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the option 'url' is missing: Address of the server"),
        ({"url": []}, "the option 'url' is wrong"),
        ({"url": "127.0.0.1:8000"}, "url must be like http://127.0.0.1:8000, got '127.0.0.1:8000'"),
        ({"url": "http://h:99999"}, "url must be like"),
        ({"url": "ftp://h/"}, "url must be like"),
        ({"url": "http://h/?key=1"}, "url must be like"),
        ({"url": "http://h", "timeout": 0}, "'timeout' is wrong: input should be greater than 0. It is: Seconds"),
        ({"url": "http://h", "timeout": "soon"}, "'timeout' is wrong"),
        ({"url": "http://h", "retries": 1000}, "'retries' is wrong"),
        ({"url": "http://h", "image_format": "jpeg"}, "'image_format' is wrong.*'png' or 'webp'"),
        ({"url": "http://h", "batchsize": 2}, "unknown option 'batchsize'; did you mean batch_size?"),
        ({"url": "http://h", "token_env": "NOT_SET_HERE"}, "token_env names 'NOT_SET_HERE', which is not set"),
    ],
)
def test_mistakes_in_the_options_are_found_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reward("http", options)


@pytest.mark.parametrize("options", [{"url": f"http://user:{TOKEN}@h"}, {"url": "http://h", "api_key": TOKEN}])
def test_a_secret_in_the_config_is_refused_without_repeating_it(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"into an environment variable.*token_env") as error:
        make_reward("http", options)
    assert TOKEN not in str(error.value)


@pytest.mark.parametrize(("token", "what"), [("two words", "no token"), ("tökentöken", "no token"), ("EMPTY", "less")])
def test_a_token_that_is_none_is_refused_without_repeating_it(
    monkeypatch: pytest.MonkeyPatch, token: str, what: str
) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", token)
    with pytest.raises(ConfigError, match=f"names 'JUDGE_TOKEN', which holds {what}") as error:
        make_reward("http", {"url": "http://h", "token_env": "JUDGE_TOKEN"})
    assert token not in str(error.value)


@pytest.mark.parametrize(
    ("said", "reward", "message"),
    [
        (Said({"version": 1, "rewards": ["minne", "x"]}), "mine", "no reward 'mine'; did you mean minne?.*: minne, x"),
        (Said({"version": 1, "rewards": ["a", "b"]}), "", "has several rewards: name one with reward, of a, b"),
        (Said({"version": 2, "rewards": ["mine"]}), "mine", "speaks protocol 2, this is 1"),
        (Said({"status": "ok"}), "mine", "no reward server: GET /health answered with something else"),
        (Said(b"OK"), "mine", "no reward server"),
        (Said(b"", 404), "mine", "no reward server: GET /health answered 404"),
    ],
)
def test_a_server_that_has_not_the_reward_is_an_error_at_once(said: Said, reward: str, message: str) -> None:
    with serving(by_brightness, get=lambda asked: said) as served, pytest.raises(ConfigError, match=message):
        reward_at(served, reward=reward)


def test_a_program_ends_although_a_server_hangs() -> None:
    stop = threading.Event()
    code = """
import sys, threading, time, torch
from mixgrpo.rewards import make_reward
from mixgrpo.rewards.scorer import Scorer
reward = make_reward("http", {"url": sys.argv[1], "reward": "mine", "batch_size": 1, "timeout": 600})
scorer = Scorer({"far": reward}, timeout=600)
scorer.submit(torch.rand(6, 3, 4, 4), ["x"] * 6)
time.sleep(1.0)
scorer.close()
print("closed", time.perf_counter())
"""

    def hang(asked: Asked) -> Said:
        stop.wait(60)
        return Said(b"")

    with serving(hang) as served:
        line = [sys.executable, "-c", code, served.url]
        done = subprocess.run(line, capture_output=True, text=True, timeout=40)
        stop.set()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("closed")
    assert served.at_once > 1
