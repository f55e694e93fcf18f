"""The reward `vlm` against chat servers that answer as asked, or otherwise."""

import math
import threading
import time
from collections.abc import Callable
from datetime import date

import numpy as np
import pytest
import torch
from reward_servers import Asked, Clause, Said, Served, in_turn, read_picture, serving
from torch import Tensor

from mixgrpo.errors import ConfigError, RewardError
from mixgrpo.rewards import make_reward
from mixgrpo.rewards.options import VlmOptions
from mixgrpo.rewards.scorer import Scorer
from mixgrpo.rewards.vlm import VlmReward

TOKEN = "sk-0123456789"


def greys(*values: int) -> Tensor:
    return (torch.tensor(values, dtype=torch.float32) / 255)[:, None, None, None].expand(-1, 3, 4, 6).contiguous()


def chat(content: str | None, **more: object) -> Said:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    return Said({"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop", **more}]})


def grey(asked: Asked) -> int:
    return int(read_picture(asked.body["messages"][0]["content"][0]["image_url"]["url"])[0, 0, 0])


def text(asked: Asked) -> str:
    return asked.body["messages"][0]["content"][1]["text"]


def models(*names: str) -> Callable[[Asked], Said]:
    return lambda asked: Said({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


def judge_at(*servers: Served, pauses: list[float] | None = None, **options: object) -> VlmReward:
    urls = tuple(f"{server.url}/v1" for server in servers)
    sleep = time.sleep if pauses is None else pauses.append
    return VlmReward(VlmOptions.model_validate({"url": urls, "model": "judge", **options}), sleep=sleep)


def judging(post: Callable[[Asked], Said], **more: object):
    return serving(post, **({"get": models("judge")} | more))


def test_every_image_is_asked_about_and_scores_keep_their_order() -> None:
    def first_comes_last(asked: Asked) -> Said:
        time.sleep(0.2 if grey(asked) == 1 else 0.0)
        return chat(f"Score: {grey(asked)}")

    with judging(first_comes_last) as served:
        found = judge_at(served)(greys(1, 4, 3, 5), ["a", "b", "c", "d"])
    assert found.values.tolist() == [1, 4, 3, 5]
    assert found.failures == []
    assert sorted(
        (grey(asked), prompt in text(asked))
        for asked, prompt in zip(sorted(served.asked, key=grey), ["\na\n", "\nc\n", "\nb\n", "\nd\n"], strict=True)
    ) == [(1, True), (3, True), (4, True), (5, True)]


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_the_request_is_that_of_a_chat_with_an_image(image_format: str) -> None:
    levels = torch.randint(0, 256, (1, 3, 5, 7), generator=torch.Generator().manual_seed(0))
    with judging(lambda asked: chat("Score: 2")) as served:
        reward = judge_at(
            served, image_format=image_format, max_tokens=9, temperature=0.5, extra={"seed": 3, "top_p": 0.9}
        )
        reward(levels / 255, ["a cat"])
    asked = served.asked[0]
    image, question = asked.body["messages"][0]["content"]
    assert (asked.path, len(asked.body["messages"]), asked.body["messages"][0]["role"]) == (
        "/v1/chat/completions",
        1,
        "user",
    )
    assert image["image_url"]["url"].startswith(f"data:image/{image_format};base64,")
    assert np.array_equal(read_picture(image["image_url"]["url"]), levels[0].permute(1, 2, 0).numpy())
    assert question["type"] == "text"
    settings = {key: asked.body[key] for key in asked.body if key != "messages"}
    assert settings == {"model": "judge", "max_tokens": 9, "temperature": 0.5, "seed": 3, "top_p": 0.9}


def test_columns_come_into_the_template() -> None:
    told = Clause("two cats", count=2)
    with judging(lambda asked: chat("Score: 5")) as served:
        found = judge_at(served, template="Are there {count} in '{prompt}'?")(greys(1, 2), [told, "a dog"])
    assert [text(asked) for asked in served.asked] == ["Are there 2 in 'two cats'?"]
    assert found.values.isnan().tolist() == [False, True]
    assert found.failures == ["the template has {count}, but the prompt has only prompt (prompt: 'a dog')"]


def test_scores_are_mapped_to_0_to_1_when_asked() -> None:
    with judging(lambda asked: chat(f"{grey(asked)} of 10")) as served:
        options = {"template": "Rate {prompt}", "parse": r"(\d+) of 10", "score_range": [2, 10]}
        assert judge_at(served, **options)(greys(2, 4, 10), "abc").values.tolist() == [2, 4, 10]
        assert judge_at(served, **options, normalise=True)(greys(2, 4, 10), "abc").values.tolist() == [0, 0.25, 1]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (chat("What a lovely picture!"), "there is no score; the answer was 'What a lovely picture!'"),
        (chat("I'm sorry, I can't assist with that."), "there is no score; the answer was \"I'm sorry"),
        (chat("Score: 11"), "the score 11 is not from 1 to 5; the answer was 'Score: 11'"),
        (chat(None, message={"refusal": "not that one"}), "the judge refused; the answer was 'not that one'"),
        (chat(""), "the judge said nothing"),
        (chat("The hands look", finish_reason="length"), "cut off at max_tokens = 512: there is no score"),
        (Said({"choices": []}), "no chat completion; the answer was '{\"choices\": []}'"),
        (Said(b"<html>"), "no chat completion; the answer was '<html>'"),
        (Said({"error": {"message": "too many tokens", "code": 400}}, 400), "answered 400: too many tokens"),
    ],
)
def test_an_answer_that_says_no_score_fails_its_image_alone(said: Said, why: str) -> None:
    def post(asked: Asked) -> Said:
        return said if grey(asked) == 2 else chat("Score: 4")

    with judging(post) as served, Scorer({"judge": judge_at(served)}) as scorer:
        table = scorer.submit(greys(1, 2, 3), ["a", "b", "c"]).result()
    assert table.values["judge"].isnan().tolist() == [False, True, False]
    assert table.values["judge"][[0, 2]].tolist() == [4, 4]
    assert len(table.failures["judge"]) == 1
    assert why in table.failures["judge"][0]
    assert table.failures["judge"][0].endswith("(prompt: 'b')")
    assert len(served.asked) == 3


def test_long_answers_are_quoted_from_their_beginning() -> None:
    with judging(lambda asked: chat("word " * 500)) as served:
        found = judge_at(served)(greys(1), ["a"])
    assert found.failures == [f"there is no score; the answer was {'word ' * 40!r} (prompt: 'a')"]


def test_expected_scores_from_the_tokens_that_were_weighed() -> None:
    def weigh(asked: Asked) -> Said:
        top = [{"token": f" {score}", "logprob": math.log(p)} for score, p in [(4, 0.6), (5, 0.3), (2, 0.1)]]
        content = [
            {"token": "Score:", "logprob": 0.0, "top_logprobs": [{"token": "Score:", "logprob": 0.0}]},
            {"token": " 4", "logprob": math.log(0.6), "bytes": [32, 52], "top_logprobs": top},
        ]
        return chat("Score: 4", logprobs={"content": content})

    with judging(weigh) as served:
        weighed = judge_at(served, logprobs=True)(greys(1), ["a"])
        written = judge_at(served)(greys(1), ["a"])
        scaled = judge_at(served, logprobs=True, normalise=True)(greys(1), ["a"])
    assert weighed.values.item() == pytest.approx(4 * 0.6 + 5 * 0.3 + 2 * 0.1)
    assert written.values.item() == 4.0
    assert scaled.values.item() == pytest.approx((4.1 - 1) / 4)
    assert (served.asked[0].body["logprobs"], served.asked[0].body["top_logprobs"]) == (True, 20)
    assert "logprobs" not in served.asked[1].body


@pytest.mark.parametrize("given", [None, {"content": None}, {"content": []}])
def test_a_server_without_logprobs_is_a_failure_not_another_scale(given: object) -> None:
    with judging(lambda asked: chat("Score: 4", logprobs=given)) as served:
        found = judge_at(served, logprobs=True)(greys(1), ["a"])
    assert found.values.isnan().all()
    assert "the server gives no logprobs; set logprobs = false" in found.failures[0]


@pytest.mark.parametrize("bound", [2, 5])
def test_no_more_requests_are_open_than_allowed(bound: int) -> None:
    together = threading.Barrier(bound, timeout=20)

    def wait_for_the_others(asked: Asked) -> Said:
        together.wait()
        return chat("Score: 3")

    with judging(wait_for_the_others) as served:
        judge_at(served, concurrent=bound)(greys(*range(10)), ["x"] * 10)
    assert (len(served.asked), served.at_once) == (10, bound)


def test_busy_and_broken_servers_are_tried_again() -> None:
    pauses: list[float] = []
    said = in_turn(Said(b"", 429, {"Retry-After": "3"}), Said(b"", 500), chat("Score: 3"))
    with judging(said) as served:
        found = judge_at(served, pauses=pauses)(greys(1), ["a"])
    assert found.values.tolist() == [3.0]
    assert (len(served.asked), pauses[0]) == (3, pytest.approx(3, abs=0.5))


def test_a_picture_that_is_not_finite_is_not_sent() -> None:
    images = greys(1, 2)
    images[1] = float("inf")
    with judging(lambda asked: chat("Score: 3")) as served:
        found = judge_at(served)(images, ["a", "b"])
    assert found.values.isnan().tolist() == [False, True]
    assert found.failures == ["a pixel is not finite (prompt: 'b')"]
    assert len(served.asked) == 1


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", TOKEN)

    def echo(asked: Asked) -> Said:
        words = f"{'-' * 195}{asked.headers['Authorization'].removeprefix('Bearer ')}"
        return chat(words) if grey(asked) == 1 else Said({"error": {"message": words}}, 401)

    with judging(echo) as served:
        found = judge_at(served, token_env="JUDGE_KEY")(greys(1, 2), ["a", "b"])
    assert {asked.headers["Authorization"] for asked in served.asked} == {f"Bearer {TOKEN}"}
    assert len(found.failures) == 2
    assert not [failure for failure in found.failures if TOKEN[:3] in failure or "***" not in failure]


@pytest.mark.parametrize(
    ("get", "message"),
    [
        (models("judge-7b", "other"), r"has no model 'judge'; did you mean judge-7b\? It has: judge-7b, other"),
        (lambda asked: Said(b"<html>hello</html>"), "/v1/models does not answer like an OpenAI-compatible server"),
        (lambda asked: Said({"error": {"message": "who are you"}}, 401), r"wants a token.*\(who are you\)"),
    ],
)
def test_a_server_that_cannot_judge_is_an_error_at_once(get: Callable[[Asked], Said], message: str) -> None:
    with judging(lambda asked: chat("Score: 3"), get=get) as served, pytest.raises(ConfigError, match=message):
        judge_at(served)


def test_a_server_that_does_not_list_its_models_is_believed() -> None:
    with judging(lambda asked: chat("Score: 3"), get=lambda asked: Said(b"", 404)) as served:
        assert judge_at(served)(greys(1), ["a"]).values.tolist() == [3.0]


def test_no_server_is_an_error_at_once() -> None:
    with judging(lambda asked: chat("Score: 3")) as served:
        pass
    with pytest.raises(RewardError, match=r"'vlm': http://.*/v1 cannot be reached"):
        judge_at(served)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://h"}, "the option 'model' is missing"),
        ({"model": "judge"}, "the option 'url' is missing"),
        ({"url": "http://h", "model": "j", "template": "defautl"}, "no template 'defautl'; did you mean default"),
        ({"url": "http://h", "model": "j", "parse": "x"}, "must have one group"),
        ({"url": "http://h", "model": "j", "score_range": [1]}, "'score_range' is wrong"),
        ({"url": "http://h", "model": "j", "score_range": [5, 1]}, "score_range must be"),
        ({"url": "http://h", "model": "j", "extra": {"day": date(2020, 1, 1)}}, "extra cannot be sent as JSON"),
        ({"url": "http://h", "model": "j", "api_key": "sk-1"}, "unknown option 'api_key'. Secrets are no settings"),
    ],
)
def test_mistakes_in_the_options_are_found_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reward("vlm", options)
