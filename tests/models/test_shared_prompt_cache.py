"""Processes that share a prompt cache divide the work, and do what one that died has left."""

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import filelock
import pytest
from diffusers import DiffusionPipeline

from mixgrpo.errors import ConfigError
from mixgrpo.models import cache_prompts
from mixgrpo.models.flux import FluxModel

PROMPTS = [f"a picture number {number}" for number in range(12)]
SPAWN = multiprocessing.get_context("spawn")
Encode = Callable[..., list[dict[str, Any]]]


def log_lines(log: Path) -> list[tuple[str, str]]:
    """Return who encoded what, of whole lines."""
    if not log.is_file():
        return []
    text = log.read_text(encoding="utf-8")
    return [(who, what) for who, _, what in (line.partition(" ") for line in text.split("\n")[:-1])]


def logged(log: Path, between: list[Callable[[], object]]) -> Encode:
    """Return FLUX's encoding of prompts that writes them down first; its first calls each do one thing `between`."""
    encode = FluxModel.encode_rows

    def encode_rows(pipeline: Any, prompts: list[str], **options: Any) -> list[dict[str, Any]]:
        with log.open("a", encoding="utf-8") as stream:  # one write, so that lines of processes do not mix
            stream.write("".join(f"{os.getpid()} {prompt}\n" for prompt in prompts))
        if between:
            between.pop(0)()
        return encode(pipeline, prompts, **options)

    return encode_rows


def fill(folder: Path, cache: Path, **options: Any) -> int:
    return cache_prompts(str(folder), PROMPTS, folder=cache, max_sequence_length=32, **{"batch": 2, **options})


def fill_beside_others(folder: Path, cache: Path, log: Path, meeting: Any) -> int:
    """Fill the cache, but write nothing before every process has taken prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FluxModel, "encode_rows", staticmethod(logged(log, [lambda: meeting.wait(300)])))
        return fill(folder, cache)


def hang(folder: Path, cache: Path, log: Path) -> None:
    """Encode a prompt, take the next, and never come back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FluxModel, "encode_rows", staticmethod(logged(log, [lambda: None, lambda: time.sleep(600)])))
        fill(folder, cache, batch=1)


@pytest.fixture
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Return a function that starts a process, which is killed at the end of the test."""
    started: list[BaseProcess] = []

    def run(what: Callable[..., object], *args: object) -> BaseProcess:
        process = SPAWN.Process(target=what, args=args)
        process.start()
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.join()


def test_processes_divide_the_prompts_among_them(
    tiny_folder: Path, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    log, cache, meeting = tmp_path / "log", tmp_path / "cache", SPAWN.Barrier(2)
    other = start(fill_beside_others, tiny_folder, cache, log, meeting)
    own = fill_beside_others(tiny_folder, cache, log, meeting)
    # This one has returned, so all is there, whoever did it.
    assert len(list(cache.rglob("*.safetensors"))) == len(PROMPTS)
    other.join(300)
    assert other.exitcode == 0
    who = Counter(who for who, _ in log_lines(log))
    assert sorted(what for _, what in log_lines(log)) == sorted(PROMPTS), "each once"
    assert len(who) == 2, "everybody had a part"
    assert who[str(os.getpid())] == own


def test_what_a_killed_process_held_is_done_by_the_others(
    tiny_folder: Path, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    log, cache = tmp_path / "log", tmp_path / "cache"
    other = start(hang, tiny_folder, cache, log)
    while len(log_lines(log)) < 2:
        assert other.is_alive()
        time.sleep(0.1)
    before = {what for _, what in log_lines(log)}
    told: list[int] = []

    def tell(done: int, total: int) -> None:
        told.append(done)
        if told.count(done) > 3:  # nothing is left but to wait for the other
            other.kill()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FluxModel, "encode_rows", staticmethod(logged(log, [])))
        own = fill(tiny_folder, cache, progress=tell)
    other.join(1)
    assert other.exitcode == -signal.SIGKILL, "it was waited for, until it was killed"
    # The first of its prompts was written; the second was held, and is what was waited for.
    assert own == len(PROMPTS) - 1
    (held,) = [what for what, times in Counter(what for _, what in log_lines(log)).items() if times == 2]
    assert held in before
    assert {what for _, what in log_lines(log)} == set(PROMPTS)
    assert told == sorted(told)
    assert told[-1] == len(PROMPTS) - 1
    assert len(list(cache.rglob("*.safetensors"))) == len(PROMPTS)


def test_what_others_encode_needs_no_text_encoders_here(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tiny_folder, tmp_path)
    (model,) = (folder for folder in tmp_path.iterdir() if folder.is_dir())
    files = {file: file.read_bytes() for file in model.rglob("*.safetensors")}
    for file in files:
        file.unlink()
    # All subfolders are held by somebody who writes the prompts while this process waits.
    held = [filelock.FileLock(lock) for lock in (model / ".locks").iterdir()]
    for lock in held:
        lock.acquire()

    def write_them(done: int, total: int) -> None:
        assert (done, total) in {(0, len(PROMPTS)), (len(PROMPTS), len(PROMPTS))}
        for file, content in files.items():
            file.write_bytes(content)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", None)
    assert fill(tiny_folder, tmp_path, progress=write_them) == 0
    for lock in held:
        lock.release()


def test_a_disk_without_locks_is_a_mistake_that_can_be_mended(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ConfigError, match=r"no file can be locked there \(.*Operation not supported\).*mounted"):
        fill(tiny_folder, tmp_path)

    def lack(*args: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", lack)  # for which filelock has a lock that would outlive its process
    for _ in range(2):
        with pytest.warns(UserWarning, match="flock"), pytest.raises(ConfigError, match="no file can be locked there"):
            fill(tiny_folder, tmp_path)
