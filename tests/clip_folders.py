"""Folders with tiny weights as users of the rewards have them, from `tiny_clip`'s numbers."""

import json
from pathlib import Path

import pytest
import tiny_clip
import torch
from tiny_clip import END, START, VOCAB
from transformers import CLIPConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mixgrpo.dry.clip import make_clip, open_clip_fields, write_head, write_hps, write_preprocessor
from mixgrpo.rewards.hpsv2 import HpsV2Reward
from mixgrpo.rewards.open_clip import Architecture
from mixgrpo.rewards.placement import Placement

SIZE = tiny_clip.IMAGE_SIZE
ARCHITECTURE = Architecture(**tiny_clip.NUMBERS)
OPEN_CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": tiny_clip.EMBED_DIM,
        "quick_gelu": True,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 8, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": len(VOCAB), "width": 24, "heads": 3, "layers": 3},
    },
    "preprocess_cfg": {
        "mean": OPENAI_CLIP_MEAN,
        "std": OPENAI_CLIP_STD,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}


@pytest.fixture(scope="session")
def clip_images():
    """Three pictures of 8-bit colours, wider than high."""
    generator = torch.Generator().manual_seed(5)
    pictures = torch.randint(0, 256, (3, 3, 37, 60), generator=generator) / 255
    pictures[1, :, :, 20:] = torch.tensor([1.0, 0.0, 0.2])[:, None, None]
    pictures[2] *= torch.linspace(0, 1, 60)
    return (pictures * 255).round() / 255


@pytest.fixture(scope="session")
def clip_tokenizer(tmp_path_factory):
    return tiny_clip.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def hps_folder(tmp_path_factory):
    """What `hf download xswu/HPSv2 HPS_v2.1_compressed.pt` leaves: half precision, under `state_dict`."""
    return write_hps(tmp_path_factory.mktemp("hps"), ARCHITECTURE)


@pytest.fixture
def open_clip_folder(tmp_path):
    """What `hf download apple/DFN5B-CLIP-ViT-H-14-378` leaves, of what open_clip reads."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP_CONFIG))
    torch.save(tiny_clip.random_state(2), tmp_path / "open_clip_pytorch_model.bin")
    return tmp_path


def clip_config(**text_fields):
    """The tiny model in transformers' words; older configs end texts at 2, which means their highest number."""
    tower = {"intermediate_size": 64, "projection_dim": 16, "hidden_act": "gelu"}
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    text = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 77}
    ends = {"vocab_size": len(VOCAB), "bos_token_id": START, "eos_token_id": END, **text_fields}
    return CLIPConfig(projection_dim=16, vision_config={**tower, **vision}, text_config={**tower, **text, **ends})


@pytest.fixture(scope="session")
def clip_model():
    return make_clip(clip_config())


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory, clip_model):
    """A model folder as `save_pretrained` writes it, with tokeniser and preprocessor_config.json."""
    folder = tiny_clip.write_tokenizer(tmp_path_factory.mktemp("clip"))
    clip_model.save_pretrained(folder)
    write_preprocessor(folder, SIZE)
    return folder


@pytest.fixture(scope="session")
def head_file(tmp_path_factory):
    """LAION's head for vectors of 16 numbers."""
    return write_head(tmp_path_factory.mktemp("head"))


def make_hps(path, tokenizer, **placement):
    """Make the reward of a checkpoint with the tiny architecture, which is then said beside it."""
    path = Path(path)
    file = path / "HPS_v2.1_compressed.pt" if path.is_dir() else path
    file.with_suffix(".json").write_text(json.dumps(open_clip_fields(ARCHITECTURE)))
    return HpsV2Reward(str(path), str(tokenizer), placement=Placement(**placement))
