"""Encoded prompts on disk, so that text encoders need not stay in memory beside the model that is trained.

A prompt's file is found by what it depends on: the text encoders and their tokenizers, the code that runs them, the
prompt, and the length it is cut to. Another model, a changed one, other versions of the libraries or another length
have other files; nothing is ever out of date.

Processes that share a cache fill it together. Prompts lie in 256 subfolders, whatever list a process was given; a
process takes subfolders by their locks, encodes what they lack, and leaves alone those that others hold. The lock of a
process that dies is free, and another one goes on from the files that are there.
"""

import hashlib
import json
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixgrpo.errors import ModelError
from mixgrpo.locks import try_lock

_ENCODING = 1
"""Version of our own encoding: raise it with every change to what some family's `encode_rows` returns."""

_LIBRARIES = ("diffusers", "transformers")
"""Whose code encodes prompts: templates of chats, cleaning and padding are in it."""

_WEIGHTS = frozenset((".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pb", ".pt", ".pth"))
"""Weights in forms that are never read here."""

_SAMPLED = 4096
"""Bytes that are read of every tensor: whoever trains an encoder changes all its tensors, all over."""

_WAIT = 0.5
"""Seconds after which a process that has nothing to do but wait looks again."""


def fingerprint(folder: Path, parts: Sequence[str], *, pipeline: str) -> str:
    """Return what identifies how prompts are encoded by `parts` of the diffusers folder `folder`.

    Of a weights file the header counts, and the first bytes of every tensor; all other files count whole, hidden ones
    not. Besides them, the code counts: the pipeline's class, the versions of the libraries and of our own encoding, and
    whether there is ftfy, with which some pipelines clean prompts.

    Args:
        folder: the model.
        parts: its text encoders and tokenizers.
        pipeline: class of the pipeline.
    """
    libraries = [f"{name} {version(name)}" for name in _LIBRARIES]
    code = [pipeline, f"encoding {_ENCODING}", *libraries, f"ftfy {find_spec('ftfy') is not None}"]
    digest = hashlib.sha256(json.dumps(code).encode())
    for part in sorted(parts):
        for file in sorted((folder / part).rglob("*")):
            name = file.relative_to(folder)
            if file.is_dir() or file.suffix in _WEIGHTS or any(each.startswith(".") for each in name.parts):
                continue
            is_read_in_parts = file.suffix == ".safetensors"
            content = _weights_digest(file) if is_read_in_parts else hashlib.sha256(file.read_bytes()).digest()
            digest.update(f"{name.as_posix()}\n".encode() + content)
    return digest.hexdigest()[:32]


class PromptCache:
    """The encoded prompts of one set of text encoders, in a folder that other models and processes may share."""

    def __init__(self, folder: Path, model: str, max_sequence_length: int) -> None:
        """Use `folder` for what the text encoders with the fingerprint `model` make of prompts."""
        self.folder = folder / model
        self._length = max_sequence_length

    def path(self, prompt: str) -> Path:
        """Return where a prompt is, or would be."""
        name = hashlib.sha256(json.dumps([self._length, prompt]).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """Return those of `prompts` that are not there, each once."""
        return [prompt for prompt in dict.fromkeys(prompts) if not self.path(prompt).is_file()]

    def fill(
        self,
        prompts: Iterable[str],
        encode: Callable[[list[str]], list[dict[str, Tensor]]],
        *,
        batch: int,
        progress: Callable[[int, int], None],
    ) -> int:
        """Make sure that all of `prompts` are there, together with other processes; return how many this one encoded.

        `encode` is called with `batch` prompts at most, and not at all if others do everything. `progress` hears how
        many there are of those that were missing at first, whoever encoded them.

        Raises:
            ConfigError: The disk has no locks.
        """
        left: dict[str, list[str]] = {}
        for prompt in self.missing(prompts):
            left.setdefault(self.path(prompt).parent.name, []).append(prompt)
        total = sum(map(len, left.values()))
        encoded = 0
        while left:
            with ExitStack() as held:
                mine = self._claim(left, batch, held)
                there = total - len(mine) - sum(map(len, left.values()))
                progress(there, total)
                for start in range(0, len(mine), batch):
                    some = mine[start : start + batch]
                    for prompt, row in zip(some, encode(some), strict=True):
                        self._write(prompt, row)
                    progress(there + start + len(some), total)
            encoded += len(mine)
            if left and not mine:
                time.sleep(_WAIT)
        return encoded

    def _claim(self, left: dict[str, list[str]], least: int, held: ExitStack) -> list[str]:
        """Lock subfolders for as long as `held` lasts, and return their prompts: `least` or more, or all there are.

        What is locked, and what others have done, is taken out of `left`.
        """
        mine: list[str] = []
        for name in list(left):
            lock = try_lock(self.folder, name)
            missing = self.missing(left[name])  # only now: until it was locked, somebody else may have written there
            if lock is not None:
                held.callback(lock.release)
                mine += missing
            if lock is not None or not missing:
                del left[name]
            else:
                left[name] = missing
            if len(mine) >= least:
                break
        return mine

    def _write(self, prompt: str, row: dict[str, Tensor]) -> None:
        """Keep an encoded prompt. A file is there whole or not at all, even on a disk whose locks do not hold."""
        path = self.path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{uuid4().hex}.part")
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in row.items()}, part)
        part.replace(path)

    def read(self, prompt: str) -> dict[str, Tensor]:
        """Return an encoded prompt, on the CPU.

        Raises:
            ModelError: if it is not there, or its file is damaged.
        """
        path = self.path(prompt)
        try:
            return load_file(path)
        except FileNotFoundError:
            raise ModelError(
                f"the prompt {prompt[:80]!r} is not in the prompt cache {self.folder}, and the text encoders are not "
                "loaded; leave model.prompt_cache empty to encode any prompt"
            ) from None
        except SafetensorError as error:
            raise ModelError(f"{path} is damaged ({error}); delete it, and it is written anew") from error


def _weights_digest(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        size = struct.unpack("<Q", stream.read(8))[0]
        header = stream.read(size)
        digest.update(header)
        for name, entry in sorted(json.loads(header).items()):
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                stream.seek(8 + size + start)
                digest.update(stream.read(min(_SAMPLED, end - start)))
    return digest.digest()
