"""Small random weights, and servers on this machine, in place of what the rewards of a run need.

A reward stays the class that it is: only the options that say where its weights or servers are change, and where its
network runs.
"""

import json
import string
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from transformers import BlipTextConfig, BlipVisionConfig

from mixgrpo.config.sections import RewardConfig
from mixgrpo.dry.clip import write_clip, write_head, write_hps, write_open_clip, write_tokenizer
from mixgrpo.dry.detector import write_detector
from mixgrpo.dry.judge import judging, serving
from mixgrpo.rewards import REWARDS
from mixgrpo.rewards.imagereward_model import ImageRewardModel, original_key
from mixgrpo.rewards.options import HttpOptions, VlmOptions, read_options
from mixgrpo.rewards.server import RewardServer
from mixgrpo.rewards.toy import BrightnessReward
from mixgrpo.shapes.files import is_hub_id

Options = dict[str, Any]


class Swap(NamedTuple):
    """A reward as a dry run has it."""

    reward: RewardConfig
    said: str
    """What became of it, for a reader."""
    notes: tuple[str, ...] = ()
    """What the real run will need and is not here."""


def _hpsv2(folder: Path) -> Options:
    return {"path": write_hps(folder), "tokenizer": write_tokenizer(folder / "tokenizer")}


def _pickscore(folder: Path) -> Options:
    return {"path": write_clip(folder), "processor": folder}


def _clip_score(folder: Path) -> Options:
    return {"path": write_open_clip(folder), "tokenizer": write_tokenizer(folder / "tokenizer")}


def _aesthetic(folder: Path) -> Options:
    return {"path": write_clip(folder / "clip"), "head": write_head(folder / "head")}


def _geneval(folder: Path) -> Options:
    return {"path": write_detector(folder / "detector"), "clip": write_clip(folder / "clip")}


def _imagereward(folder: Path) -> Options:
    return {"path": write_imagereward(folder), "tokenizer": folder}


_WEIGHTS: dict[str, Callable[[Path], Options]] = {
    "aesthetic": _aesthetic,
    "clip_score": _clip_score,
    "geneval": _geneval,
    "hpsv2": _hpsv2,
    "imagereward": _imagereward,
    "pickscore": _pickscore,
}
"""Reward -> what writes small weights into a folder and returns the options that say where they are."""


def write_imagereward(folder: Path) -> Path:
    """Write ImageReward's checkpoint and configs as they are published, with a tokenizer that knows letters."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = string.ascii_lowercase + string.digits
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    sizes = {
        "vocab_size": len(words) + 2,  # BLIP's two tokens come on top
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 40,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    vision = BlipVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1, image_size=32, patch_size=16
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = ImageRewardModel(vision, BlipTextConfig(**sizes, encoder_hidden_size=64), (20, 12, 8, 4, 1))
        state = {
            original_key(key): weight + 0.2 * torch.randn_like(weight) for key, weight in model.state_dict().items()
        }
    save_file(state, folder / "ImageReward.safetensors")
    (folder / "med_config.json").write_text(json.dumps(sizes), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return folder


@contextmanager
def swapping(rewards: tuple[RewardConfig, ...], folder: Path, *, device: str) -> Iterator[list[Swap]]:
    """Yield the rewards of a run with stand-ins in `folder`, and with servers that answer meanwhile.

    Networks run on `device`.

    Raises:
        ConfigError: if an option of a reward behind a server is wrong.
    """
    with ExitStack() as stack:
        yield [_swap(reward, folder / reward.name, device, stack) for reward in rewards]


def _swap(reward: RewardConfig, folder: Path, device: str, stack: ExitStack) -> Swap:
    use = reward.use or reward.name
    if use in _WEIGHTS:
        places = {name: str(path) for name, path in _WEIGHTS[use](folder).items()}
        if use == "imagereward" and not reward.options.get("tokenizer"):
            del places["tokenizer"]  # it is found beside the checkpoint, as the run would find it
        notes = _not_here(reward, places)
        return Swap(_with(reward, {**places, "device": device}), "small random weights", notes)
    if use == "http":
        options = read_options(use, HttpOptions, reward.options)
        server = RewardServer("127.0.0.1", 0, {options.reward or "stand-in": BrightnessReward()})
        stack.callback(server.close)
        stack.enter_context(serving(server))
        return Swap(_with(reward, {"url": [server.url] * len(options.url)}), "a server on this machine: brightness")
    if use == "vlm":
        options = read_options(use, VlmOptions, reward.options)
        url = stack.enter_context(judging(options, reward.name))
        return Swap(_with(reward, {"url": [url] * len(options.url)}), "a server on this machine that makes up answers")
    return Swap(reward, "as it is" if use in REWARDS else f"as it is: your own code, {use}")


def _with(reward: RewardConfig, options: Options) -> RewardConfig:
    return reward.model_copy(update={"options": {**reward.options, **options}})


def _not_here(reward: RewardConfig, places: Options) -> tuple[str, ...]:
    """Return which of the files that options name are neither here nor on the hub."""
    named = {option: str(reward.options[option]) for option in places if reward.options.get(option)}
    missing = {o: path for o, path in named.items() if not is_hub_id(path) and not Path(path).expanduser().exists()}
    notes = [f"reward {reward.name}: options.{o} {path!r} is not here; the run needs it" for o, path in missing.items()]
    if (reward.use or reward.name) == "aesthetic" and "head" not in named:
        default = Path("sac+logos+ava1-l14-linearMSE.pth")
        if not default.is_file():
            notes.append(
                f"reward {reward.name}: its head {default} is not in this folder; the run needs it, or options.head"
            )
    return tuple(notes)
