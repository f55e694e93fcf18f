"""Every file of a CLIP reward that is missing, broken or of another model ends in one message with what to do."""

import json
import shutil

import pytest
import tiny_clip
import torch
from clip_folders import OPEN_CLIP_CONFIG, SIZE, make_hps
from safetensors.torch import save_file
from tiny_clip import PROMPTS, VOCAB

from mixgrpo.dry.clip import write_preprocessor
from mixgrpo.errors import ConfigError
from mixgrpo.rewards import make_reward

WEIGHT_REWARDS = ("aesthetic", "clip_score", "hpsv2", "pickscore")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("use", WEIGHT_REWARDS)
@pytest.mark.parametrize("known", [True, False])
def test_a_hub_that_is_out_of_reach_ends_in_one_message_with_what_to_do(use, known, head_file, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    options = {"head": str(head_file)} if use == "aesthetic" else {}
    if not known:
        options["path"] = "nobody/nothing"
    with pytest.raises(ConfigError, match=rf"the {use} reward: options.path '.*hf download .* --local-dir FOLDER"):
        make_reward(use, options)


def test_the_head_is_looked_for_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"options.head 'sac\+logos.*curl -L .*raw/main/sac\+logos"):
        make_reward("aesthetic")


@pytest.mark.parametrize("use", WEIGHT_REWARDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "./no/such/folder"}, "options.path './no/such/folder': "),
        ({"dtype": "int8"}, "options.dtype must be one of float32, float16, bfloat16, got 'int8'"),
        ({"batch_size": 0}, "options.batch_size must be at least 1, got 0"),
        ({"device": "gpu"}, "options.device 'gpu' is no torch device"),
        ({"device": "cuda:3"}, "options.device is 'cuda:3', but torch sees no CUDA device"),
        ({"weights": "x"}, "cannot be made with the options"),
    ],
)
def test_mistakes_in_the_options_are_named(use, options, message, head_file):
    if use == "aesthetic":
        options = {"head": str(head_file), **options}
    with pytest.raises(ConfigError, match=message):
        make_reward(use, options)


@pytest.mark.parametrize("use", ["aesthetic", "pickscore"])
def test_a_divisor_must_be_positive(use):
    with pytest.raises(ConfigError, match=f"the {use} reward's divide_by must be above 0, got 0"):
        make_reward(use, {"divide_by": 0})


class RunsCode:
    """Pickled, it would write a file where it is read."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


def test_a_pickle_that_would_run_code_is_refused(clip_tokenizer, tmp_path):
    torch.save({"state_dict": {}, "extra": RunsCode(tmp_path / "ran")}, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(ConfigError, match="cannot be read as weights alone"):
        make_hps(tmp_path, clip_tokenizer)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["HPS_v2.1_compressed.pt", "hps.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9])
def test_half_a_download_is_named(name, kept, clip_tokenizer, tmp_path):
    save = save_file if name.endswith(".safetensors") else torch.save
    save(tiny_clip.random_state(), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ConfigError, match=f"{name} (is no file of torch's|cannot be read as).*hf download xswu/HPSv2"):
        make_hps(tmp_path / name, clip_tokenizer)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"state_dict": {"a": "b"}}, {"state_dict": [1]}, {"epoch": 3}])
def test_a_file_that_holds_no_weights_is_named(content, clip_tokenizer, tmp_path):
    torch.save(content, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(ConfigError, match="holds something other than named weights"):
        make_hps(tmp_path, clip_tokenizer)


def test_a_checkpoint_of_another_architecture_is_refused(hps_folder, tmp_path):
    """Unless its architecture is said beside it, the reward wants a ViT-H-14, with its 49408 tokens."""
    folder = tiny_clip.write_tokenizer(tmp_path)
    alone = shutil.copy(hps_folder / "HPS_v2.1_compressed.pt", tmp_path)
    filling = [f"nothing {i}" for i in range(49408 - len(VOCAB))]
    (folder / "vocab.json").write_text(json.dumps({v: i for i, v in enumerate([*VOCAB[:-2], *filling, *VOCAB[-2:]])}))
    with pytest.raises(ConfigError, match=r"the hpsv2 reward: .*not a checkpoint of .*1280 wide with 32 layers.*shape"):
        make_reward("hpsv2", {"path": alone, "tokenizer": str(folder)})


def test_a_model_of_another_kind_is_refused(clip_folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(ConfigError, match="is a model of type 'siglip', but this reward needs a 'clip' model"):
        make_reward("pickscore", {"path": str(tmp_path), "processor": str(clip_folder)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual_projection.weight"), "1 missing: visual_projection.weight"),
        (lambda s: s.update(extra=torch.ones(1)), "1 unknown: extra"),
        (lambda s: s.update({"logit_scale": torch.ones(2)}), "1 of the wrong shape: logit_scale"),
        (lambda s: s.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}), None),
    ],
)
def test_weights_that_do_not_fit_their_config_are_named(
    change, message, clip_model, clip_folder, clip_images, tmp_path, capfd
):
    clip_model.config.save_pretrained(tmp_path)
    state = {key: tensor.clone() for key, tensor in clip_model.state_dict().items()}
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    options = {"path": str(tmp_path), "processor": str(clip_folder)}
    if message is None:
        torch.testing.assert_close(
            make_reward("pickscore", options)(clip_images, PROMPTS),
            make_reward("pickscore", {**options, "path": str(clip_folder)})(clip_images, PROMPTS),
        )
        return
    with pytest.raises(ConfigError, match=f"the weights do not fit the config.json beside them: {message}"):
        make_reward("pickscore", options)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="vit_so400m"), "it has timm_model_name"),
        (lambda c: c["model_cfg"].update(custom_text=True), "it has custom_text"),
        (lambda c: c["model_cfg"]["vision_cfg"].pop("width"), "'width'"),
        (lambda c: c.pop("model_cfg"), "'model_cfg'"),
        (lambda c: c["preprocess_cfg"].update(interpolation="bilinear"), "'bilinear' and 'squash'"),
        (lambda c: c["preprocess_cfg"].update(resize_mode="longest"), "'bicubic' and 'longest'"),
        (lambda c: c["model_cfg"]["vision_cfg"].update(layers=4), "vision_model.encoder.layers.2.layer_norm1.bias"),
    ],
)
def test_what_open_clips_config_says_is_checked(change, message, open_clip_folder, clip_tokenizer):
    config = json.loads(json.dumps(OPEN_CLIP_CONFIG))
    change(config)
    (open_clip_folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"the clip_score reward: options.path .*{message}"):
        make_reward("clip_score", {"path": str(open_clip_folder), "tokenizer": str(clip_tokenizer)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resample": 2}, "filter 2"),
        ({"do_center_crop": False}, "the crop {}"),
        ({"crop_size": {"height": 28, "width": 20}}, "Only squares"),
        ({"size": 32}, "Only squares"),
        ({"size": 32, "crop_size": 32}, "prepared 32 pixels wide, but its model takes 28"),
        ({"size": {"height": 28, "width": 28}, "do_center_crop": False}, None),
    ],
)
def test_what_the_preprocessor_config_says_is_checked(fields, message, clip_folder, tmp_path, clip_images):
    folder = tiny_clip.write_tokenizer(tmp_path)
    write_preprocessor(folder, SIZE, **fields)
    options = {"path": str(clip_folder), "processor": str(folder)}
    if message:
        with pytest.raises(ConfigError, match=message):
            make_reward("pickscore", options)
    else:
        squash = clip_images[:, :, :37, :37]
        crop = make_reward("pickscore", {**options, "processor": str(clip_folder)})
        torch.testing.assert_close(make_reward("pickscore", options)(squash, PROMPTS), crop(squash, PROMPTS))
        assert not torch.allclose(
            make_reward("pickscore", options)(clip_images, PROMPTS), crop(clip_images, PROMPTS), atol=0.1
        )


@pytest.mark.parametrize("lacking", ["tokenizer_config.json vocab.json merges.txt", "preprocessor_config.json"])
def test_a_processor_folder_that_lacks_files_is_named(lacking, clip_folder, tmp_path):
    folder = tiny_clip.write_tokenizer(tmp_path)
    write_preprocessor(folder, SIZE)
    for name in lacking.split():
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"options.processor .* cannot be loaded: .*hf download laion/CLIP"):
        make_reward("pickscore", {"path": str(clip_folder), "processor": str(folder)})


@pytest.mark.parametrize(
    "tokens",
    [
        [*VOCAB[:-1], "more</w>", VOCAB[-1]],
        [*VOCAB, "more</w>"],  # its end token is at the same place
        [*VOCAB[:-2], VOCAB[-1], VOCAB[-2]],  # it has as many tokens
    ],
)
def test_the_tokeniser_of_another_model_is_refused(tokens, clip_folder, tmp_path):
    folder = tiny_clip.write_tokenizer(tmp_path)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    with pytest.raises(
        ConfigError, match=rf"options.tokenizer .*does not belong to the model, whose {len(VOCAB)} tokens"
    ):
        make_reward("clip_score", {"path": str(clip_folder), "tokenizer": str(folder)})


@pytest.mark.parametrize(
    "change", [lambda s: s.pop("layers.7.bias"), lambda s: s.update({"layers.1.bias": torch.ones(1)})]
)
def test_a_head_of_another_kind_is_refused(change, clip_folder, head_file, tmp_path):
    state = torch.load(head_file, weights_only=True)
    change(state)
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(ConfigError, match="is not LAION's predictor"):
        make_reward("aesthetic", {"path": str(clip_folder), "head": str(tmp_path / "head.pth")})


def test_a_head_for_vectors_of_another_length_is_refused(clip_folder, head_file, tmp_path):
    state = torch.load(head_file, weights_only=True)
    state["layers.0.weight"] = torch.ones(1024, 768)
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(ConfigError, match=r"takes vectors of 768 numbers, but the CLIP model .* gives 16"):
        make_reward("aesthetic", {"path": str(clip_folder), "head": str(tmp_path / "head.pth")})
