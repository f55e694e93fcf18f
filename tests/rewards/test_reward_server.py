"""The reference server, asked in plain HTTP: what it answers, what it refuses, and what it bears."""

import base64
import http.client
import io
import json
import logging
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mixgrpo.rewards.base import NamedReward, Scores
from mixgrpo.rewards.server import Limits, RewardServer

Score = Callable[[Tensor, list[str]], Any]


class Answer(NamedTuple):
    status: int
    content: Any
    headers: dict[str, str]


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    return images.mean((1, 2, 3))


@contextmanager
def serving(*, token: str = "", limits: Limits | None = None, **functions: Score) -> Iterator[RewardServer]:
    rewards = {name: NamedReward(name, function) for name, function in (functions or {"mine": brightness}).items()}
    server = RewardServer("127.0.0.1", 0, rewards, token=token, limits=limits)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.close()
        thread.join()


def ask(server: RewardServer, method: str, path: str, body: object = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, content, headers)
    response = connection.getresponse()
    answer = Answer(response.status, json.loads(response.read()), dict(response.headers))
    connection.close()
    return answer


def picture(grey: int = 51, size: tuple[int, int] = (6, 4), mode: str = "RGB", kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new(mode, size, grey if mode in ("L", "P") else (grey,) * len(mode)).save(file, kind, lossless=True)
    return base64.b64encode(file.getvalue()).decode()


def request(**changes: object) -> dict[str, object]:
    return {"version": 1, "images": [picture(51), picture(102)], "prompts": ["a", "b"], **changes}


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in request().items() if name != key}


def bomb(width: int, height: int) -> str:
    """A PNG of a few bytes that says it is larger."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


def test_health_says_what_there_is() -> None:
    with serving(mine=brightness, other=brightness) as server:
        answer = ask(server, "GET", "/health")
    assert answer.status == 200
    assert answer.content["version"] == 1
    assert answer.content["rewards"] == ["mine", "other"]
    assert answer.content["server"].startswith("mixgrpo ")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_scores_and_details_come_back_in_order(kind: str) -> None:
    def score(images: Tensor, prompts: list[str]) -> Scores:
        return Scores(images[:, 0, 0, 0], {"length": torch.tensor([float(len(prompt)) for prompt in prompts])})

    images = [picture(grey, kind=kind) for grey in (51, 255, 0)]
    with serving(mine=score) as server:
        answer = ask(server, "POST", "/score", request(images=images, prompts=["a", "bcd", "é"]))
    assert answer.status == 200
    assert answer.content["scores"] == pytest.approx([0.2, 1.0, 0.0])
    assert answer.content["details"] == {"length": [1.0, 3.0, 1.0]}
    assert answer.content["failures"] == []


def test_pixels_arrive_where_they_were() -> None:
    seen: list[Tensor] = []
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")

    def keep(images: Tensor, prompts: list[str]) -> list[float]:
        seen.append(images)
        return [1.0]

    with serving(mine=keep) as server:
        image = base64.b64encode(file.getvalue()).decode()
        assert ask(server, "POST", "/score", request(images=[image], prompts=["a"])).status == 200
    assert seen[0].shape == (1, 3, 5, 7)
    assert torch.equal(seen[0][0], torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)


@pytest.mark.parametrize("nothing", [float("nan"), float("inf")])
def test_what_has_no_score_is_null_in_plain_json(nothing: float) -> None:
    def score(images: Tensor, prompts: list[str]) -> Scores:
        return Scores(torch.tensor([0.5, nothing]), {"seen": torch.tensor([nothing, 1.0])})

    with serving(mine=score) as server:
        answer = ask(server, "POST", "/score", request())
    assert answer.content["scores"] == [0.5, None]
    assert answer.content["details"] == {"seen": [None, 1.0]}
    assert answer.content["failures"] == ["no finite score (prompt: 'b')"]


def test_the_reward_that_is_named_is_the_one_that_is_asked() -> None:
    with serving(one=lambda i, p: [1.0] * len(i), two=lambda i, p: [2.0] * len(i)) as server:
        found = [ask(server, "POST", "/score", request(reward=name)).content["scores"] for name in ("two", "one")]
    assert found == [[2.0, 2.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("body", "status", "field", "message"),
    [
        (b"not json", 400, "body", "Invalid JSON"),
        (b"[]", 400, "body", ""),
        (request(version=2), 400, "version", "1"),
        (without("version"), 400, "version", "required"),
        (without("images"), 400, "images", "required"),
        (without("prompts"), 400, "prompts", "required"),
        (request(images=[], prompts=[]), 400, "images", "at least 1"),
        (request(images="x"), 400, "images", "array"),
        (request(images=[picture(), 3]), 400, "images[1]", "string"),
        (request(prompts=["a"]), 400, "prompts", "there are 1 for 2 images"),
        (request(prompts=["a", None]), 400, "prompts[1]", "string"),
        (request(columns=[{}]), 400, "columns", "there are 1 for 2 images"),
        (request(columns=[{}, 3]), 400, "columns[1]", "object"),
        (request(propmts=[]), 400, "propmts", "not permitted"),
        (request(reward="yours"), 404, "reward", "there is no 'yours' here; there are: mine"),
        (request(images=[picture(), "%%%"]), 400, "images[1]", "not base64"),
        (request(images=["YWJj", picture()]), 400, "images[0]", "cannot be read as a PNG or WebP"),
        (request(images=["", picture()]), 400, "images[0]", "cannot be read as a PNG or WebP"),
        (request(images=[picture(), picture(kind="JPEG")]), 400, "images[1]", "cannot be read as a PNG or WebP"),
        (request(images=[picture(), picture(size=(4, 6))]), 400, "images[1]", "is 4 x 6 pixels, the first is 6 x 4"),
        (request(images=[picture(mode="RGBA"), picture()]), 400, "images[0]", "has the colours RGBA; send RGB"),
        (request(images=[picture(mode="L"), picture()]), 400, "images[0]", "has the colours L; send RGB"),
        (request(images=[picture(), picture()[:-60]]), 400, "images[1]", ""),
        (request(images=[bomb(8000, 10_000), picture()]), 400, "images[0]", "more than 67108864 pixels"),
        (request(images=[bomb(100_000, 10_000), picture()]), 400, "images[0]", "decompression bomb"),
        (request(images=[picture(), bomb(6, 4)]), 400, "images[1]", "is broken"),
    ],
)
def test_a_bad_request_is_refused_with_the_field_that_is_wrong(
    body: object, status: int, field: str, message: str
) -> None:
    with serving() as server:
        answer = ask(server, "POST", "/score", body)
        assert ask(server, "POST", "/score", request()).status == 200  # it goes on
    assert answer.status == status
    assert list(answer.content) == ["error"]
    assert answer.content["error"]["field"] == field
    assert message in answer.content["error"]["message"]


def test_which_of_several_rewards_is_meant_must_be_said() -> None:
    with serving(one=brightness, two=brightness) as server:
        answer = ask(server, "POST", "/score", request())
    assert (answer.status, answer.content["error"]["field"]) == (404, "reward")
    assert "there are: one, two" in answer.content["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/score"), ("POST", "/health"), ("POST", "/scores")]
)
def test_other_paths_are_not_found(method: str, path: str) -> None:
    with serving() as server:
        answer = ask(server, method, path, {} if method == "POST" else None)
    assert answer.status == 404
    assert answer.content["error"]["field"] == "path"


def test_what_is_no_http_of_this_kind_is_refused_in_json() -> None:
    with serving() as server:
        assert ask(server, "DELETE", "/score").status == 501
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 411 ")


def test_a_request_that_is_too_large_is_refused_unread() -> None:
    with serving(limits=Limits(body=2000)) as server:
        for size in (2001, 7000, 500_000):
            answer = ask(server, "POST", "/score", b"x" * size)
            assert answer.status == 413
            assert f"has {size} bytes, more than 2000" in answer.content["error"]["message"]


def test_a_token_is_asked_for_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(token="open-sesame") as server:
        for method, path, body in (("GET", "/health", None), ("POST", "/score", request())):
            for wrong in ({}, {"Authorization": "Bearer open-sesam"}, {"Authorization": "open-sesame"}):
                answer = ask(server, method, path, body, **wrong)
                assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert "open" not in json.dumps(answer.content)
            assert ask(server, method, path, body, Authorization="Bearer open-sesame").status == 200
    assert "open-sesame" not in caplog.text


def test_each_reward_is_called_by_one_request_at_a_time_and_rewards_side_by_side() -> None:
    lock, inside, most = threading.Lock(), {"x": 0, "y": 0}, {"x": 0, "y": 0, "both": 0}

    def counting(name: str) -> Score:
        def score(images: Tensor, prompts: list[str]) -> list[float]:
            with lock:
                inside[name] += 1
                most[name] = max(most[name], inside[name])
                most["both"] = max(most["both"], sum(inside.values()))
            time.sleep(0.05)
            with lock:
                inside[name] -= 1
            return [float(prompts[0])] * len(images)

        return score

    found: list[tuple[int, float]] = []
    with serving(x=counting("x"), y=counting("y")) as server:

        def call(number: int) -> None:
            answer = ask(server, "POST", "/score", request(reward="xy"[number % 2], prompts=[str(number)] * 2))
            found.append((number, answer.content["scores"][0]))

        threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == [(number, float(number)) for number in range(8)]
    assert most == {"x": 1, "y": 1, "both": 2}


def test_more_requests_than_allowed_are_told_to_come_back() -> None:
    is_in, go_on = threading.Event(), threading.Event()

    def wait(images: Tensor, prompts: list[str]) -> list[float]:
        is_in.set()
        go_on.wait(20)
        return [1.0] * len(images)

    with serving(mine=wait, limits=Limits(requests=1)) as server:
        first = threading.Thread(target=ask, args=(server, "POST", "/score", request()))
        first.start()
        assert is_in.wait(20)
        answer = ask(server, "POST", "/score", request())
        assert ask(server, "GET", "/health").status == 200  # which is no work
        go_on.set()
        first.join()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        # a place is free once the answer is written, which its reader may know a moment before
        deadline = time.monotonic() + 20
        while (status := ask(server, "POST", "/score", request()).status) == 503 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status == 200


def test_a_reward_that_raises_or_hangs_gives_null_and_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    go_on = threading.Event()

    def picky(images: Tensor, prompts: list[str]) -> Tensor:
        if "b" in prompts:
            raise ZeroDivisionError("not this one")
        return images.mean((1, 2, 3))

    def hangs(images: Tensor, prompts: list[str]) -> list[float]:
        go_on.wait(20)
        return []

    with serving(picky=picky, hangs=hangs, limits=Limits(seconds=0.2)) as server:
        one = ask(server, "POST", "/score", request(reward="picky"))
        two = ask(server, "POST", "/score", request(reward="hangs"))
        go_on.set()
    assert (one.status, one.content["scores"]) == (200, [pytest.approx(0.2), None])
    assert one.content["failures"] == ["ZeroDivisionError: not this one (prompt: 'b')"]
    assert (two.status, two.content["scores"]) == (200, [None, None])
    assert two.content["failures"] == ["no answer within 0.2 s (2 images not scored)"]
    assert "picky: ZeroDivisionError: not this one (prompt: 'b')" in caplog.text


def test_a_reward_that_returns_no_scores_is_an_error_that_no_try_mends() -> None:
    with serving(mine=lambda images, prompts: images.mean()) as server:
        answer = ask(server, "POST", "/score", request())
    assert (answer.status, answer.content["error"]["field"]) == (422, "reward")
    assert "'mine' returned values of shape [] for 2 images" in answer.content["error"]["message"]


def test_closing_waits_for_what_is_in_progress() -> None:
    is_in = threading.Event()
    answers: list[Answer] = []

    def slow(images: Tensor, prompts: list[str]) -> list[float]:
        is_in.set()
        time.sleep(1.3)  # longer than the scorer itself waits at its end
        return [1.0] * len(images)

    with serving(mine=slow) as server:
        client = threading.Thread(target=lambda: answers.append(ask(server, "POST", "/score", request())))
        client.start()
        assert is_in.wait(20)
    client.join()
    assert (answers[0].status, answers[0].content["scores"]) == (200, [1.0, 1.0])


def test_the_address_is_one_that_can_be_asked() -> None:
    server = RewardServer("0.0.0.0", 0, {"mine": NamedReward("mine", brightness)})
    server.close()
    assert server.url == f"http://127.0.0.1:{server.server_port}"
    server = RewardServer("::1", 0, {"mine": NamedReward("mine", brightness)})
    server.close()
    assert server.url == f"http://[::1]:{server.server_port}"
