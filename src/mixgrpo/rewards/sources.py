"""Where the files of a reward lie, and reading them: a folder, a file, or a repository of the hub.

Whatever is missing, out of reach or of another kind ends in one `ConfigError` that names the reward and its option,
and says how to get the published files. Pickled files are read with `weights_only`, so none can run code.
"""

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import logging

from mixgrpo.errors import ConfigError
from mixgrpo.shapes.files import is_hub_id

Names = tuple[str, ...]
"""Names that a file may have; the first that is there counts."""

CONFIG: Names = ("config.json",)
WEIGHTS: Names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
TOKENIZER: Names = ("tokenizer.json", "vocab.json", "vocab.txt")

TOKENIZER_FILES = "config.json tokenizer.json tokenizer_config.json vocab.json merges.txt"
"""The files of a hub's repository that make CLIP's tokeniser."""

_POSITIONS = "embeddings.position_ids"
_LISTED = 6  # names that a message shows of each kind
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, SafetensorError)


@dataclass(frozen=True, slots=True)
class Source:
    """What an option says about where files lie, and what its messages call it."""

    reward: str
    option: str
    path: str
    """A folder, a file, or a hub id."""
    command: str
    """What fetches the published files, with their place as FOLDER."""
    files: tuple[Names, ...]
    """What has to be there, whatever else helps."""

    @classmethod
    def of_hub(cls, reward: str, option: str, path: str, *, published: str, files: tuple[Names, ...]) -> "Source":
        """Return a source whose published files are a hub repository, or the files of it that follow a space."""
        return cls(reward, option, path, f"hf download {published} --local-dir FOLDER", files)

    def __str__(self) -> str:
        """Name the option with its value: the beginning of a message."""
        return f"the {self.reward} reward: options.{self.option} {self.path!r}"

    @property
    def place(self) -> str:
        """The path with `~` written out."""
        return os.path.expanduser(self.path)

    @property
    def is_on_hub(self) -> bool:
        """Whether the path can only be a hub id."""
        return is_hub_id(self.place)

    def error(self, what: str) -> ConfigError:
        """Return an error that says `what` is wrong with the source, and how to get the published files."""
        return ConfigError(
            f"{self}: {what}. Get it, where there is a network, with: {self.command}; then set options.{self.option} "
            "to that folder"
        )

    def check_exists(self) -> None:
        """Find a wrong path before anything takes it for a hub id.

        Raises:
            ConfigError: It is neither here nor of the form of a hub id.
        """
        if not Path(self.place).exists() and not self.is_on_hub:
            raise self.error("it is neither a file, nor a folder, nor a hub id (owner/name)")

    def find(self, *names: str) -> Path | None:
        """Return the first of the files `names` that the folder or the hub's repository has; None where there is none.

        If the path is a file itself, return that.

        Raises:
            ConfigError: There is no such folder, and it is no hub id either, or none that the hub lets one read.
        """
        self.check_exists()
        path = Path(self.place)
        if path.is_file():
            return path
        if path.is_dir():
            return next((path / name for name in names if (path / name).is_file()), None)
        for name in names:
            try:
                return Path(hf_hub_download(self.place, name))
            except EntryNotFoundError:  # also where the hub is out of reach, for the next name may lie in the cache
                continue
            except (OSError, HFValidationError) as error:
                raise self.unreadable(error) from error
        return None

    def require(self, *names: str) -> Path:
        """Return what `find` finds.

        Raises:
            ConfigError: It finds nothing.
        """
        file = self.find(*names)
        if file is not None:
            return file
        wanted = " or ".join(names)
        if self.is_on_hub:
            raise self.error(f"it is no folder here, and the hub has no {wanted} under that name or cannot be reached")
        raise self.error(f"it has no {wanted}")

    def load(self, kind: Any, **options: Any) -> Any:
        """Return what `from_pretrained` of a class of transformers makes of the source; no code of its own is run.

        Raises:
            ConfigError: It cannot be read, or not be reached.
        """
        self.check_exists()
        try:
            with quiet():
                return kind.from_pretrained(self.place, **options)
        except _UNREADABLE as error:
            raise self.unreadable(error) from error

    def load_model(self, kind: Any, *, exact: bool = True) -> Any:
        """Load a model of transformers, float32, frozen, every weight of it.

        Of tensors that the model does not have, those are let through that older files of CLIP hold, the numbers 0, 1,
        2, ... of positions; all of them if the files need not be `exact`.

        Raises:
            ConfigError: It is of another kind, weights are missing or left over, or it cannot be reached.
        """
        self.check_exists()
        wanted = kind.config_class.model_type
        try:
            with quiet():
                found = kind.config_class.get_config_dict(self.place)[0].get("model_type")
        except OSError as error:
            raise self.unreadable(error) from error
        if found != wanted:
            raise self.error(f"it is a model of type {found!r}, but this reward needs a {wanted!r} model")
        # shapes that do not fit are reported like missing weights, by name, instead of raised
        options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = self.load(kind, dtype=torch.float32, **options)
        problems = {
            "missing": sorted(report["missing_keys"]),
            "unknown": sorted(k for k in report["unexpected_keys"] if exact and not k.endswith(_POSITIONS)),
            "of the wrong shape": sorted(str(entry[0]) for entry in report["mismatched_keys"]),
        }
        if any(problems.values()):
            raise self.error(f"the weights do not fit the config.json beside them: {in_words(problems)}")
        return model.eval().requires_grad_(False)

    def read_weights(self, file: Path) -> dict[str, Tensor]:
        """Return the tensors of a .safetensors file, or of a state dict in torch's format, bare or under `state_dict`.

        Raises:
            ConfigError: The file cannot be read without running code of its own, or holds something else.
        """
        safe = file.suffix == ".safetensors"
        if not safe and not is_zipfile(file):  # torch's format since 1.6; half a download has no end of a zip file
            raise self.error(f"{file} is no file of torch's, or not all of one")
        try:
            content = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            raise self.error(f"{file} cannot be read as weights alone: {_first_line(error)}") from error
        state = content.get("state_dict", content) if isinstance(content, Mapping) else None
        if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise self.error(f"{file} holds something other than named weights")
        return dict(state)

    def unreadable(self, error: Exception) -> ConfigError:
        """Return the error that says what a library said."""
        where = "it is no folder here, and from the hub it" if self.is_on_hub else "it"
        return self.error(f"{where} cannot be loaded: {_first_line(error)}")


def in_words(problems: Mapping[str, list[str]]) -> str:
    """Say how many names there are of every kind of problem, and the first few of them."""
    return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in problems.items() if names)


def listed(names: list[str]) -> str:
    """Name the first few of `names`."""
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own remarks out of the terminal: what is wrong, an error here says."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
