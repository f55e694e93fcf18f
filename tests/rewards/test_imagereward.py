import json

import pytest
import torch
from rewards.blip_reference import SIDE, med_config, reference_score, tiny_checkpoint
from safetensors.torch import save_file

from mixgrpo.errors import ConfigError
from mixgrpo.rewards import Reward, make_reward
from mixgrpo.rewards.imagereward import sources
from mixgrpo.rewards.imagereward_model import UNUSED
from mixgrpo.rewards.imagereward_model import load_imagereward as load_from

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "on", "the", "mat", "##s", "blue"]
VOCABULARY = len(WORDS) + 2
"""With BLIP's two tokens."""
PROMPTS = {
    "a red cat": [2, 5, 6, 7, 3],
    "The CATS on the blue mat": [2, 9, 7, 11, 8, 9, 12, 10, 3],
    "cat " * 60: [2, *[7] * 33, 3],
    "[DEC] cat [ENC]": [2, 13, 7, 14, 3],
}
"""Each prompt with its tokens, worked out by hand: lower case, whole words, ends, and no more than 35."""


@pytest.fixture(scope="module")
def weights():
    return tiny_checkpoint(vocabulary=VOCABULARY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(weights, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(med_config(vocabulary=VOCABULARY)))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture(scope="module")
def reward(folder):
    return make_reward("imagereward", {"path": str(folder), "device": "cpu"})


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (len(PROMPTS), 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1)) / 255


def normalised(image):
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return (image - mean[:, None, None]) / std[:, None, None]


def test_scores_equal_those_of_blip_written_in_plain_torch(reward, weights, images):
    """The prompts have 5 to 35 tokens and are scored together: the reference pads none of them."""
    expected = [
        reference_score(weights, normalised(image), ids) for image, ids in zip(images, PROMPTS.values(), strict=True)
    ]
    assert max(expected) - min(expected) > 0.1
    assert isinstance(reward, Reward)
    assert reward.name == "imagereward"
    assert reward(images, list(PROMPTS)).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_picture_is_scored_against_its_own_prompt_only(reward, weights, images):
    prompts = list(PROMPTS)
    before = reward(images, prompts)
    after = reward(images, [prompts[0], "the blue cats " * 20, *prompts[2:]])
    assert (after - before).abs().tolist() == pytest.approx([0, abs(after[1] - before[1]).item(), 0, 0], abs=1e-6)
    assert abs(after[1] - before[1]) > 1e-3
    swapped = reward(images.flip(0), prompts[::-1]).flip(0)
    assert swapped.tolist() == pytest.approx(before.tolist(), abs=1e-6)


def test_the_batch_size_changes_no_score(folder, reward, images):
    one_by_one = make_reward("imagereward", {"path": str(folder), "device": "cpu", "batch_size": 1})
    three = make_reward("imagereward", {"path": str(folder), "device": "cpu", "batch_size": 3})
    expected = reward(images, list(PROMPTS)).tolist()
    assert one_by_one(images, list(PROMPTS)).tolist() == pytest.approx(expected, abs=1e-6)
    assert three(images, list(PROMPTS)).tolist() == pytest.approx(expected, abs=1e-6)


def test_scores_need_no_gradient_and_a_broken_picture_has_none(reward, images):
    broken = images.clone()
    broken[1, 0, 3, 3] = float("inf")
    scores = reward(broken.requires_grad_(), list(PROMPTS))
    assert not scores.requires_grad
    assert scores.isnan().tolist() == [False, True, False, False]


def test_half_precision_towers_keep_the_head_in_float32(folder, reward, images):
    half = make_reward("imagereward", {"path": str(folder), "device": "cpu", "dtype": "bfloat16"})
    scores = half(images, list(PROMPTS))
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(reward(images, list(PROMPTS)).tolist(), abs=0.1)
    assert (scores != scores.bfloat16().float()).any()


def load_imagereward(checkpoint, config):
    return load_from(sources()[0], checkpoint, config)


def saved(tmp_path, weights, **config):
    """Save a checkpoint as safetensors with its config; return both files."""
    save_file(dict(weights), tmp_path / "ImageReward.safetensors")
    (tmp_path / "med_config.json").write_text(json.dumps(med_config(vocabulary=VOCABULARY) | config))
    return tmp_path / "ImageReward.safetensors", tmp_path / "med_config.json"


def test_every_weight_of_the_checkpoint_is_used_and_needed(tmp_path, weights):
    """Each key but the named five, left out, is missed by name. The first of two equal layers stands for both."""
    needed = sorted(weights.keys() - UNUSED)
    assert len(weights) - len(needed) == len(UNUSED) == 5
    for key in needed:
        if ".blocks.1." in key or ".layer.1." in key:
            continue
        files = saved(tmp_path, {name: weight for name, weight in weights.items() if name != key})
        with pytest.raises(ConfigError) as error:
            load_imagereward(*files)
        assert key in str(error.value)
        assert "missing" in str(error.value)


def test_the_text_encoder_is_the_one_that_its_config_describes(tmp_path, weights):
    text = load_imagereward(*saved(tmp_path, weights, hidden_act="relu", layer_norm_eps=1e-7)).text.config
    assert (text.hidden_act, text.layer_norm_eps) == ("relu", 1e-7)


def test_the_keys_that_no_score_depends_on_may_be_missing(tmp_path, weights):
    load_imagereward(*saved(tmp_path, {key: weight for key, weight in weights.items() if key not in UNUSED}))


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("blip.text_encoder.pooler.dense.weight", (2, 2), r"not known: blip\.text_encoder\.pooler\.dense\.weight"),
        ("blip.visual_encoder.blocks.2.norm1.weight", (128,), r"missing: blip\.visual_encoder\.blocks\.2\."),
        ("blip.text_encoder.encoder.layer.2.output.dense.bias", (24,), r"not known: .*layer\.2\.output\.dense\.bias"),
        ("mlp.layers.2.bias", (13,), r"wrong shape: mlp\.layers\.2\.bias \[13\] instead of \[12\]"),
    ],
)
def test_a_key_too_many_or_of_another_shape_is_named(tmp_path, weights, key, shape, message):
    with pytest.raises(ConfigError, match=message):
        load_imagereward(*saved(tmp_path, weights | {key: torch.zeros(shape)}))


def test_a_config_that_describes_another_encoder_is_an_error(tmp_path, weights):
    with pytest.raises(ConfigError, match=r"missing: .*layer\.2\."):
        load_imagereward(*saved(tmp_path, weights, num_hidden_layers=3))
    config = tmp_path / "med_config.json"
    config.write_text(json.dumps({"hidden_size": 24}))
    with pytest.raises(ConfigError, match=r"med_config\.json.*lacks vocab_size, intermediate_size"):
        load_imagereward(tmp_path / "ImageReward.safetensors", config)
    config.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_imagereward(tmp_path / "ImageReward.safetensors", config)


class Surprise:
    """What a checkpoint must not be able to do: create a file when it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (self.file, "w"))


def test_a_checkpoint_cannot_run_code(tmp_path, folder, weights):
    torch.save({**weights, "x": Surprise(str(tmp_path / "surprise"))}, tmp_path / "ImageReward.pt")
    (tmp_path / "med_config.json").write_text((folder / "med_config.json").read_text())
    with pytest.raises(ConfigError, match=r"ImageReward\.pt.* cannot be read as weights"):
        make_reward("imagereward", {"path": str(tmp_path), "device": "cpu"})
    assert not (tmp_path / "surprise").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "nested"])
def test_a_file_that_is_no_state_dict_is_an_error(tmp_path, folder, content):
    file = tmp_path / "ImageReward.pt"
    if content == "nested":
        torch.save({"model": {}}, file)
    else:
        file.write_bytes(content)
    (tmp_path / "med_config.json").write_text((folder / "med_config.json").read_text())
    with pytest.raises(ConfigError, match=r"ImageReward\.pt"):
        make_reward("imagereward", {"path": str(tmp_path), "device": "cpu"})


def test_a_tokenizer_of_another_size_is_an_error(tmp_path, folder):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    with pytest.raises(ConfigError, match=r"14 tokens with \[DEC\] and \[ENC\].*encoder has 15.*bert-base-uncased"):
        make_reward("imagereward", {"path": str(folder), "tokenizer": str(tmp_path), "device": "cpu"})


def test_what_is_missing_is_named_with_what_to_download(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    needed = r"hf download THUDM/ImageReward ImageReward\.pt med_config\.json --local-dir FOLDER"
    with pytest.raises(ConfigError, match=rf"no ImageReward\.safetensors or ImageReward\.pt.*{needed}"):
        make_reward("imagereward", {"path": str(tmp_path)})
    with pytest.raises(ConfigError, match=rf"neither a file, nor a folder, nor a hub id.*{needed}"):
        make_reward("imagereward", {"path": str(tmp_path / "not" / "there")})
    with pytest.raises(ConfigError, match=rf"options\.path 'nobody/is-not-there'.*{needed}; then set options\.path"):
        make_reward("imagereward", {"path": "nobody/is-not-there"})
    with pytest.raises(ConfigError, match=r"options\.tokenizer 'nobody/is-not-there'.*bert-base-uncased"):
        make_reward("imagereward", {"path": str(folder), "tokenizer": "nobody/is-not-there"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"dtype": "int8"}, "one of float32, float16, bfloat16, got 'int8'"),
        ({"device": "gpu"}, "'gpu' is no torch device"),
        ({"model": "x"}, r"cannot be made with the options \{'model': 'x'\}"),
    ],
)
def test_a_wrong_option_is_an_error_before_anything_is_loaded(options, message):
    with pytest.raises(ConfigError, match=message):
        make_reward("imagereward", options)
