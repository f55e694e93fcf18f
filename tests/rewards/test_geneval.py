"""The detector and CLIP with tiny random weights, saved to folders; the rules themselves are in test_scene.py."""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rewards.test_scene import Line
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    Mask2FormerForUniversalSegmentation,
)

from mixgrpo.dry.detector import PREPROCESSING, write_detector
from mixgrpo.errors import ConfigError, RewardError
from mixgrpo.rewards import Reward, make_reward
from mixgrpo.rewards.detector import ColorNamer, Mask2FormerDetector, box_around, cut_out, geneval_name
from mixgrpo.rewards.geneval import sources
from mixgrpo.rewards.placement import Placement
from mixgrpo.rewards.scene import COLORS, Box, Detection, judge, read_scene, select
from mixgrpo.shapes.files import bundled_folder

CPU = Placement(device="cpu")
CLASSES = ("cat", "dog", "mouse")


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory):
    """A Mask2Former of three classes."""
    return write_detector(tmp_path_factory.mktemp("mask2former"), CLASSES)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = bundled_folder("flux-nano") / "tokenizer"
    text = {**sizes, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    vision = {**sizes, "image_size": 16, "patch_size": 4, "initializer_factor": 20.0}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def detector(detector_folder):
    return Mask2FormerDetector(sources(path=str(detector_folder))[0], CPU)


@pytest.fixture(scope="module")
def namer(clip_folder):
    return ColorNamer(sources(clip=str(clip_folder))[1], CPU)


@pytest.fixture(scope="module")
def images():
    """Pictures of 90 by 60 pixels with soft colours, on the grid of 8 bits."""
    coarse = torch.rand(5, 3, 3, 4, generator=torch.Generator().manual_seed(2))
    return (torch.nn.functional.interpolate(coarse, (60, 90), mode="bilinear") * 255).round() / 255


def picture_of(image):
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def as_table(found):
    return sorted((*thing.detection, int(thing.mask.sum())) for thing in found)


@torch.no_grad()
def test_objects_are_what_the_networks_outputs_say(detector, detector_folder, images):
    """Classes and confidences from the logits: class probability times the mean probability within the mask."""
    picture = picture_of(images[0])
    pixels = torch.from_numpy(np.array(picture.resize((96, 64), Image.Resampling.BILINEAR))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(PREPROCESSING[key])[:, None, None] for key in ("image_mean", "image_std"))
    model = Mask2FormerForUniversalSegmentation.from_pretrained(detector_folder).eval()
    outputs = model(pixel_values=((pixels - mean) / std)[None])
    classes = outputs.class_queries_logits[0].softmax(-1)[:, :3].flatten()
    logits = torch.nn.functional.interpolate(outputs.masks_queries_logits, (384, 384), mode="bilinear")[0].double()
    expected = []
    for i in classes.argsort(descending=True)[:12].tolist():
        inside = logits[i // 3] > 0
        small = torch.nn.functional.interpolate(inside[None, None].float(), (60, 90))[0, 0] > 0
        if small.any():
            score = classes[i] * logits[i // 3].sigmoid()[inside].mean()
            y, x = np.nonzero(small.numpy())
            box = (x.min(), y.min(), x.max() + 1, y.max() + 1)
            label = ("cat", "dog", "computer mouse")[i % 3]
            expected.append((label, score.item(), box, None, int(small.sum())))
    (found,) = detector([picture], threshold=0.0)
    assert len({label for label, *_ in expected}) > 1
    for got, wanted in zip(as_table(found), sorted(expected), strict=True):
        assert (got[0], got[2:]) == (wanted[0], wanted[2:])
        assert got[1] == pytest.approx(wanted[1], abs=2e-6)


@torch.no_grad()
def test_pictures_of_a_batch_are_searched_apart_and_above_the_threshold(detector, images):
    pictures = [picture_of(image) for image in images[:2]]
    both = detector(pictures, threshold=0.3)
    for picture, found in zip(pictures, both, strict=True):
        (alone,) = detector([picture], threshold=0.0)
        assert [len(alone), len(found)] == [len(alone), sum(thing.detection.score >= 0.3 for thing in alone)]
        assert 0 < len(found) < len(alone)
    assert as_table(both[0]) != as_table(both[1])
    assert detector(pictures, threshold=1.0) == [[], []]


def test_the_classes_have_genevals_names(detector):
    assert detector.labels == {"cat", "dog", "computer mouse"}
    names = ["aeroplane", "Sofa", "tvmonitor", "remote", "keyboard", "stop sign"]
    assert [geneval_name(name) for name in names] == [
        *("airplane", "couch", "tv", "tv remote", "computer keyboard", "stop sign")
    ]


def test_a_box_holds_all_pixels_of_a_mask():
    mask = torch.zeros(6, 9, dtype=torch.bool)
    mask[2, 3] = mask[4, 7] = True
    assert box_around(mask) == Box(3, 2, 8, 5)
    mask[:] = True
    assert box_around(mask) == Box(0, 0, 9, 6)


def test_an_object_is_cut_out_with_grey_around_it():
    pixels = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
    mask = torch.zeros(6, 9, dtype=torch.bool)
    mask[2, 3] = mask[4, 5] = True
    found = SimpleNamespace(detection=Detection("cat", 0.5, box_around(mask)), mask=mask)
    cut = np.array(cut_out(Image.fromarray(pixels), found))
    expected = np.full((3, 3, 3), 153)
    expected[0, 0], expected[2, 2] = pixels[2, 3], pixels[4, 5]
    assert cut.tolist() == expected.tolist()


@torch.no_grad()
def test_a_colour_is_the_nearest_of_the_mean_phrases(namer, clip_folder):
    """The same through CLIP's own forward pass, phrase by phrase, whose embeddings it normalises itself."""
    generator = np.random.default_rng(0)
    crops = [Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(12)]
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), AutoTokenizer.from_pretrained(clip_folder)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = [np.array(crop.resize((24, 16), Image.Resampling.BICUBIC))[:, 4:20] / 255 for crop in crops]
    pixels = torch.tensor(np.stack([(p - mean) / std for p in pixels]), dtype=torch.float32).permute(0, 3, 1, 2)
    for label in ("cat", "computer mouse"):
        directions = []
        for color in COLORS:
            texts = (
                f"a photo of a {color} {label}",
                f"a photo of a {color}-colored {label}",
                f"a photo of a {color} object",
            )
            embeds = [
                model(**tokenizer(text, return_tensors="pt"), pixel_values=pixels).text_embeds[0] for text in texts
            ]
            total = sum(embeds)
            directions.append(total / total.norm())
        seen = model(**tokenizer("x", return_tensors="pt"), pixel_values=pixels).image_embeds
        expected = [COLORS[max(range(10), key=lambda i: (image @ directions[i]).item())] for image in seen]
        assert len(set(expected)) > 2
        assert namer(crops, label) == expected
    assert namer([], "cat") == []


def make(detector_folder, clip_folder, **options):
    return make_reward("geneval", {"path": str(detector_folder), "clip": str(clip_folder), "device": "cpu"} | options)


PROMPTS = [
    Line("a green dog", tag="colors", include=[{"class": "dog", "count": 1, "color": "green"}]),
    Line("two dogs", tag="counting", include=[{"class": "dog", "count": 2}], exclude=[{"class": "dog", "count": 3}]),
    Line("two green dogs", tag="color_attr", include=[{"class": "dog", "count": 2, "color": "green"}]),
    Line(
        "a cat below a dog",
        tag="position",
        include=[{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["below", 0]}],
    ),
    Line("a red cat and a dog", include=[{"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1}]),
]
"""What is right, wrong, or wrong in part about the pictures of `images`, depending on the options."""


@pytest.fixture(scope="module")
def seen(detector, namer, images):
    """All objects of every picture with their colours, found and named picture by picture."""
    objects = []
    with torch.no_grad():
        for picture in map(picture_of, images):
            (found,) = detector([picture], threshold=0.0)
            colors = [namer([cut_out(picture, thing)], thing.detection.label)[0] for thing in found]
            pairs = zip(found, colors, strict=True)
            objects.append([thing.detection._replace(color=color) for thing, color in pairs])
    return objects


@pytest.mark.parametrize(
    ("thresholds", "select_by", "margin", "batch_size"),
    [
        ((0.3, 0.435), {}, 0.1, 8),
        ((0.3, 0.435), {"max_objects": 1}, 0.12, 2),
        ((0.45, 0.2), {"max_overlap": 0.5}, 0.1, 1),
    ],
)
def test_the_reward_joins_its_parts(
    detector_folder, clip_folder, seen, images, thresholds, select_by, margin, batch_size
):
    low, high = thresholds
    options = {"threshold": low, "counting_threshold": high, "position_margin": margin, "batch_size": batch_size}
    scores = make(detector_folder, clip_folder, **options, **select_by)(images, PROMPTS)
    verdicts = []
    for objects, prompt in zip(seen, PROMPTS, strict=True):
        scene = read_scene(prompt)
        found = select(objects, threshold=high if scene.tag == "counting" else low, **select_by)
        verdicts.append(judge(scene, found, margin=margin))
    assert set(scores.values.tolist()) == {0, 1}
    assert scores.values.tolist() == scores.details["correct"].tolist()
    for field in ("correct", "exact", "partial", "presence", "count", "color", "position"):
        expected = [getattr(verdict, field) for verdict in verdicts]
        assert scores.details[field].tolist() == pytest.approx(expected, nan_ok=True), field


def test_the_partial_score_is_an_option(detector_folder, clip_folder, images):
    scores = make(detector_folder, clip_folder, partial=True)(images, PROMPTS)
    assert scores.values.tolist() == scores.details["partial"].tolist()
    assert not set(scores.values.tolist()) <= {0.0, 1.0}


@pytest.fixture(scope="module")
def reward(detector_folder, clip_folder):
    """As it is without options."""
    return make(detector_folder, clip_folder)


def test_it_is_a_reward_of_its_name(reward):
    assert isinstance(reward, Reward)
    assert reward.name == "geneval"


def test_the_verdicts_are_also_told_by_tag(reward, images):
    details = reward(images, PROMPTS).details
    tags = {key: column for key, column in details.items() if key.startswith("tag_")}
    assert tags.keys() == {"tag_colors", "tag_counting", "tag_color_attr", "tag_position"}
    for i, tag in enumerate(("colors", "counting", "color_attr", "position")):
        expected = [details["correct"][i].item() if j == i else math.nan for j in range(5)]
        assert tags[f"tag_{tag}"].tolist() == pytest.approx(expected, nan_ok=True)


def test_a_broken_picture_has_no_score(reward, images):
    broken = images[:2].clone()
    broken[1, 0, 3, 3] = float("nan")
    scores = reward(broken, PROMPTS[:2])
    assert scores.values.isnan().tolist() == [False, True]
    assert scores.details["partial"].isnan().tolist() == [False, True]


def test_a_prompt_that_asks_for_nothing_known_is_an_error(reward, images):
    with pytest.raises(RewardError, match=r"no column 'include' .*'a plain text'.*\.jsonl"):
        reward(images[:1], ["a plain text"])
    line = Line("a computer house", include=[{"class": "computer house", "count": 1}])
    with pytest.raises(RewardError, match=r"'computer house'.*Near are: computer mouse.*knows 3 classes.*cat"):
        reward(images[:1], [line])


def spoiled(tmp_path, folder, change):
    """Copy a model's folder with other weights."""
    shutil.copytree(folder, tmp_path / "spoiled")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "spoiled" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "spoiled"


def test_weights_that_are_missing_or_of_another_shape_are_named(tmp_path, detector_folder, clip_folder):
    """transformers would go on with random ones."""
    lacking = spoiled(tmp_path / "a", detector_folder, lambda weights: weights.pop("class_predictor.bias"))
    with pytest.raises(ConfigError, match=r"do not fit .*1 missing: class_predictor\.bias"):
        make(lacking, clip_folder)
    wrong = spoiled(tmp_path / "b", clip_folder, lambda weights: weights.update(logit_scale=torch.zeros(3)))
    with pytest.raises(ConfigError, match=r"options\.clip .*do not fit .*1 of the wrong shape: logit_scale"):
        make(detector_folder, wrong)


def test_what_is_missing_is_named_with_what_to_download(tmp_path, detector_folder, clip_folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    needed = r"hf download facebook/mask2former-swin-small-coco-instance .*model\.safetensors"
    with pytest.raises(ConfigError, match=rf"options\.path .*{needed}.*then set options\.path"):
        make(tmp_path, clip_folder)
    with pytest.raises(ConfigError, match=rf"'nobody/is-not-there'.*{needed}"):
        make("nobody/is-not-there", clip_folder)
    with pytest.raises(ConfigError, match=r"neither a file, nor a folder, nor a hub id"):
        make(tmp_path / "not" / "there", clip_folder)
    with pytest.raises(
        ConfigError, match=r"options\.clip .*type 'mask2former', .* needs a 'clip' model.*clip-vit-large-patch14"
    ):
        make(detector_folder, detector_folder)
    with pytest.raises(ConfigError, match=rf"options\.path .*type 'clip', .* needs a 'mask2former' model.*{needed}"):
        make(clip_folder, clip_folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, "threshold must be from 0 to below 1, got 1.0"),
        ({"counting_threshold": -0.1}, "counting_threshold must be from 0"),
        ({"max_objects": 0}, "max_objects of at least 1"),
        ({"max_overlap": 0.0}, "max_overlap above 0"),
        ({"position_margin": -1.0}, "position_margin of at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"device": "tpu9"}, "'tpu9' is no torch device"),
        ({"detector": "x"}, "cannot be made with the options"),
    ],
)
def test_a_wrong_option_is_an_error_before_anything_is_loaded(options, message):
    with pytest.raises(ConfigError, match=message):
        make_reward("geneval", options)
