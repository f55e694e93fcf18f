"""Rewards: `(images, prompts) -> one score per image`.

`REWARDS` are the built-in ones, by name. Anything else is an import path `package.module:factory`, where
`factory(**options)` returns the reward. Nothing heavy, torch included, is imported before a reward is made.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixgrpo.errors import ConfigError, MissingExtraError
from mixgrpo.rewards.base import NamedReward, Reward, Scores

if TYPE_CHECKING:
    from mixgrpo.rewards.sources import Source

_CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""The model that PickScore and HPSv2 were trained from."""


def _ocr(*, threads: int = 1) -> Reward:
    from mixgrpo.rewards.ocr import OcrReward  # noqa: PLC0415

    return OcrReward(threads=threads)


def _colors() -> Reward:
    from mixgrpo.rewards.colors import ColorReward  # noqa: PLC0415

    return ColorReward()


def _http(**options: Any) -> Reward:
    from mixgrpo.rewards.http import HttpReward  # noqa: PLC0415
    from mixgrpo.rewards.options import HttpOptions, read_options  # noqa: PLC0415

    return HttpReward(read_options("http", HttpOptions, options))


def _geneval(**options: Any) -> Reward:  # the class says which, and checks them
    from mixgrpo.rewards.geneval import GenEvalReward  # noqa: PLC0415

    return GenEvalReward(**options)


def _imagereward(**options: Any) -> Reward:  # the class says which, and checks them
    from mixgrpo.rewards.imagereward import ImageReward  # noqa: PLC0415

    return ImageReward(**options)


def _jpeg(*, quality: int = 95) -> Reward:
    from mixgrpo.rewards.toy import JpegReward  # noqa: PLC0415

    return JpegReward(quality=quality)


def _brightness() -> Reward:
    from mixgrpo.rewards.toy import BrightnessReward  # noqa: PLC0415

    return BrightnessReward()


def _tesseract() -> Reward:
    from mixgrpo.rewards.tesseract import TesseractReward  # noqa: PLC0415

    return TesseractReward()


def _vlm(**options: Any) -> Reward:
    from mixgrpo.rewards.options import VlmOptions, read_options  # noqa: PLC0415
    from mixgrpo.rewards.vlm import VlmReward  # noqa: PLC0415

    return VlmReward(read_options("vlm", VlmOptions, options))


def _clip_score(
    *, path: str = "apple/DFN5B-CLIP-ViT-H-14-378", tokenizer: str = "openai/clip-vit-large-patch14", **placement: Any
) -> Reward:
    from mixgrpo.rewards.clip_score import ClipScoreReward  # noqa: PLC0415
    from mixgrpo.rewards.placement import Placement  # noqa: PLC0415

    return ClipScoreReward(path, tokenizer, placement=Placement(**placement))


def _pickscore(
    *, path: str = "yuvalkirstain/PickScore_v1", processor: str = _CLIP_H, divide_by: float = 1.0, **placement: Any
) -> Reward:
    from mixgrpo.rewards.pickscore import PickScoreReward  # noqa: PLC0415
    from mixgrpo.rewards.placement import Placement  # noqa: PLC0415

    return PickScoreReward(path, processor, divide_by=divide_by, placement=Placement(**placement))


def _hpsv2(*, path: str = "xswu/HPSv2", tokenizer: str = _CLIP_H, **placement: Any) -> Reward:
    from mixgrpo.rewards.hpsv2 import HpsV2Reward  # noqa: PLC0415
    from mixgrpo.rewards.placement import Placement  # noqa: PLC0415

    return HpsV2Reward(path, tokenizer, placement=Placement(**placement))


def _aesthetic(
    *,
    path: str = "openai/clip-vit-large-patch14",
    head: str = "sac+logos+ava1-l14-linearMSE.pth",
    divide_by: float = 1.0,
    **placement: Any,
) -> Reward:
    from mixgrpo.rewards.aesthetic import AestheticReward  # noqa: PLC0415
    from mixgrpo.rewards.placement import Placement  # noqa: PLC0415

    return AestheticReward(path, head, divide_by=divide_by, placement=Placement(**placement))


REWARDS: dict[str, Callable[..., Reward]] = {
    "aesthetic": _aesthetic,
    "brightness": _brightness,
    "clip_score": _clip_score,
    "colors": _colors,
    "geneval": _geneval,
    "http": _http,
    "hpsv2": _hpsv2,
    "imagereward": _imagereward,
    "jpeg": _jpeg,
    "ocr": _ocr,
    "pickscore": _pickscore,
    "tesseract": _tesseract,
    "vlm": _vlm,
}
"""Name -> what makes the reward from its options."""


_WITH_FILES = ("aesthetic", "clip_score", "geneval", "hpsv2", "imagereward", "pickscore")
"""Rewards whose module, of the same name, has a function `sources`."""

_EXTRAS = {"clip_score": ("ftfy", "clip"), "hpsv2": ("ftfy", "clip")}
"""Reward with files -> package that it needs, too, and the extra that brings it."""


def reward_sources(use: str, options: Mapping[str, Any]) -> "tuple[Source, ...]":
    """Return where a reward with such options has its files, and load nothing; a reward of one's own says nothing."""
    return importlib.import_module(f"mixgrpo.rewards.{use}").sources(**options) if use in _WITH_FILES else ()


def missing_extra(use: str) -> MissingExtraError | None:
    """Return what a reward with files would raise, after they were downloaded, for a package that is not installed."""
    package, extra = _EXTRAS.get(use, ("", ""))
    return MissingExtraError(f"the {use} reward", package, extra) if package and find_spec(package) is None else None


def make_reward(use: str, options: Mapping[str, Any] | None = None) -> Reward:
    """Make the built-in reward called `use`, or the one that the import path `use` leads to.

    An import path is `package.module:factory`; modules in the working directory are found too. The factory
    gets the options as keyword arguments and returns a `Reward`, or a plain function `(images, prompts) ->
    scores`; either may have the attribute `takes_video`.

    Raises:
        ConfigError: There is no such reward, its module or factory is not there, or it does not take the
            options.
        MissingExtraError: The reward needs a package that is not installed.
    """
    options = dict(options or {})
    if use not in REWARDS and ":" not in use:
        close = get_close_matches(use, REWARDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"there is no reward {use!r}.{hint} Built in are: {', '.join(sorted(REWARDS))}. "
            f"A reward of your own is an import path: package.module:factory"
        )
    factory = REWARDS[use] if use in REWARDS else _import_factory(use)
    try:
        made = factory(**options)
    except TypeError as error:
        hint = "" if use in REWARDS else ". The path must name a factory, which returns the reward when called"
        raise ConfigError(f"the reward {use!r} cannot be made with the options {options}: {error}{hint}") from error
    if isinstance(made, Reward):
        return made
    if not callable(made):
        raise ConfigError(
            f"the reward {use!r}: its factory returned {made!r}, not something to call with (images, prompts)"
        )
    from mixgrpo.rewards.frames import takes_video  # noqa: PLC0415

    return NamedReward(use, made, takes_video=takes_video(made))


def _import_factory(path: str) -> Callable[..., Any]:
    """Import what `package.module:factory` names."""
    module_name, _, name = path.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise ConfigError(f"the reward {path!r} is not an import path of the form package.module:factory")
    # A console script, unlike `python -m`, does not look in the folder it is started in, where a user's
    # reward lies.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"the reward {path!r}: the module {module_name!r} cannot be imported: {error}") from error
    names = vars(module)
    if name not in names:
        close = get_close_matches(name, names, n=1)
        hint = f". Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"the reward {path!r}: the module {module_name!r} has no {name!r}{hint}")
    if not callable(names[name]):
        raise ConfigError(f"the reward {path!r}: {name!r} is not callable; it must be a factory that returns a reward")
    return names[name]


__all__ = ["REWARDS", "Reward", "Scores", "make_reward", "missing_extra", "reward_sources"]
