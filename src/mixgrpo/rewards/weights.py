"""Where the weights of a reward come from. Every error names the reward and what to download."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from mixgrpo.errors import RewardError
from mixgrpo.shapes.files import is_hub_id


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """A folder or a hub id that holds a reward's weights."""

    reward: str
    """Name of the reward, for messages."""
    option: str
    """The option that sets `path`, for messages."""
    path: str
    """The folder or the hub id (owner/name)."""
    needed: str
    """What has to be there, as a user would download it."""

    def find(self, *names: str) -> Path:
        """Return the first file of these `names` that there is; a hub id is asked for the last of them.

        Raises:
            RewardError: There is none, no such folder, or the hub cannot be reached.
        """
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            for name in names:
                if (folder / name).is_file():
                    return folder / name
            raise self.error(f"the folder has no {' or '.join(names)}")
        self.check_exists()
        from transformers.utils.hub import cached_file  # noqa: PLC0415 (heavy)

        try:
            found = cached_file(self.path, names[-1])
        except (OSError, ValueError) as error:
            raise self.error(str(error)) from error
        if found is None:
            raise self.error(f"the hub has no {names[-1]} there")
        return Path(found)

    def load(self, auto_class: Any, **options: Any) -> Any:
        """Call `from_pretrained` of a transformers class on the folder or hub id.

        Raises:
            RewardError: It cannot be read, or, for a model, has not all weights in the right shapes: transformers
                would go on with random ones.
        """
        self.check_exists()
        try:
            loaded = auto_class.from_pretrained(str(Path(self.path).expanduser()), **options)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise self.error(str(error)) from error
        if not options.get("output_loading_info"):
            return loaded
        model, info = loaded
        for kind in ("missing_keys", "mismatched_keys"):
            if info[kind]:
                names = sorted(key if isinstance(key, str) else key[0] for key in info[kind])
                raise self.error(
                    f"its weights do not fit {auto_class.__name__}: {kind.replace('_', ' ')} {shown(names)}"
                )
        return model

    def load_model(self, model_class: Any) -> Any:
        """Load a transformers model in float32 from safetensors, all weights accounted for, frozen, for inference.

        Raises:
            RewardError: See `load`; or the config there is that of another kind of model.
        """
        kind, wanted = self.load(AutoConfig).model_type, model_class.config_class.model_type
        if kind != wanted:
            raise self.error(f"its config.json is that of {kind!r}, not of {wanted!r}")
        model = self.load(
            model_class,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported like missing ones, by name
            output_loading_info=True,
        )
        return model.eval().requires_grad_(False)

    def check_exists(self) -> None:
        """Find a wrong path before transformers takes it for a hub id.

        Raises:
            RewardError: It is neither a folder here nor of the form of a hub id.
        """
        if not Path(self.path).expanduser().is_dir() and not is_hub_id(self.path):
            raise self.error("this is neither a folder nor a hub id (owner/name)")

    def error(self, what: str) -> RewardError:
        """Return an error that says `what` is wrong with the source and what to download."""
        return RewardError(
            f"the {self.reward} reward cannot use {self.path!r} (option {self.option!r}): {what}. "
            f"It needs {self.needed}. Without access to the hub, download it elsewhere into a folder and set the "
            f"option {self.option!r} to that folder"
        )


def shown(names: list[str], most: int = 5) -> str:
    """Return the first few of `names` for a message, with how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
