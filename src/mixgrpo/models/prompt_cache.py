"""Encoded prompts on disk, so that text encoders need not stay in memory beside the model that is trained.

A prompt's file is found by what it depends on: the text encoders and their tokenizers, the prompt, and the length it
is cut to. Another model, a changed one or another length has other files; nothing is ever out of date.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixgrpo.errors import ModelError

_SAMPLED = 4096
"""Bytes that are read of every tensor: whoever trains an encoder changes all its tensors, all over."""


def fingerprint(folder: Path, parts: Sequence[str]) -> str:
    """Return what identifies the `parts` (text encoders and tokenizers) of the diffusers folder `folder`.

    Small files count whole; of a weights file the header, and the first bytes of every tensor.
    """
    digest = hashlib.sha256()
    for part in sorted(parts):
        for file in sorted((folder / part).rglob("*")):
            if file.suffix == ".safetensors":
                digest.update(f"{part}/{file.name}\n".encode())
                digest.update(_weights_digest(file))
            elif file.suffix in (".json", ".txt", ".model"):
                digest.update(f"{part}/{file.name}\n".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
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

    def write(self, prompt: str, row: dict[str, Tensor]) -> None:
        """Keep an encoded prompt. Processes may write the same one at a time; a file is there whole or not at all."""
        path = self.path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
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
