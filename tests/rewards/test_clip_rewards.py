"""What the rewards that are CLIP models say, on tiny weights in folders as users have them.

What they are compared with is written out in `tiny_clip`, or is transformers' own way from picture and text to score.
"""

import json
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import tiny_clip
import torch
from clip_folders import OPEN_CLIP_CONFIG, SIZE, clip_config, make_hps
from PIL import Image
from safetensors.torch import save_file
from tiny_clip import END, PROMPTS
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPImageProcessorPil
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mixgrpo.dry.clip import make_clip, write_preprocessor
from mixgrpo.errors import MissingExtraError
from mixgrpo.rewards import clip_text, make_reward
from mixgrpo.rewards.scorer import Scorer


def as_pillow(clip_images):
    return [Image.fromarray((x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()) for x in clip_images]


def standardised(pixels):
    mean, std = (np.array(figures)[:, None, None] for figures in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return torch.from_numpy((np.stack(pixels) - mean) / std).float()


def squashed(image):
    scaled = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.array(scaled, dtype=np.float64).transpose(2, 0, 1) / 255


def cropped_evenly(image):
    """The middle of the picture, 60 x 37 scaled to 45 x 28: of 17 columns, 8 are left out on the left."""
    scaled = np.array(image.resize((45, 28), Image.Resampling.BICUBIC), dtype=np.float64)
    return scaled[:, 8:36].transpose(2, 0, 1) / 255


def reference_cosines(state, pixels, prompts, activation):
    numbers = torch.cat([tiny_clip.reference_tokens(prompt) for prompt in prompts])
    image = tiny_clip.reference_image_vectors(state, pixels, activation)
    text = tiny_clip.reference_text_vectors(state, numbers, activation)
    return (normalize(image, dim=1) * normalize(text, dim=1)).sum(1)


def transformers_cosines(model, folder, clip_images, prompts):
    """The way of PickScore's model card: both padded by transformers, each token masked that is no text."""
    sides = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    pixels = np.array(CLIPImageProcessorPil(**sides)(as_pillow(clip_images), return_tensors="np")["pixel_values"])
    words = AutoTokenizer.from_pretrained(folder)(
        list(prompts), padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(pixel_values=torch.from_numpy(pixels), **words)
    return (output.image_embeds * output.text_embeds).sum(1)


def test_hpsv2_is_the_cosine_of_the_original_model(hps_folder, clip_tokenizer, clip_images):
    state = {key: tensor.half().float() for key, tensor in tiny_clip.random_state(1).items()}
    pixels = standardised([tiny_clip.reference_padded(image, SIZE) for image in clip_images])
    expected = reference_cosines(state, pixels, PROMPTS, "gelu")
    torch.testing.assert_close(make_hps(hps_folder, clip_tokenizer)(clip_images, PROMPTS), expected, rtol=0, atol=1e-5)
    assert expected.max() - expected.min() > 0.1


def test_hpsv2_reads_a_file_by_its_path_and_safetensors(hps_folder, clip_tokenizer, clip_images, tmp_path):
    save_file(tiny_clip.random_state(1), tmp_path / "hps.safetensors")
    scores = make_hps(tmp_path / "hps.safetensors", clip_tokenizer)(clip_images, PROMPTS)
    again = make_hps(hps_folder / "HPS_v2.1_compressed.pt", clip_tokenizer)(clip_images, PROMPTS)
    torch.testing.assert_close(scores, again, rtol=0, atol=5e-3)  # the other file is in half precision


@pytest.mark.parametrize("mode", ["squash", "shortest", None])
def test_clip_score_is_the_cosine_of_open_clip(mode, open_clip_folder, clip_tokenizer, clip_images):
    config = json.loads(json.dumps(OPEN_CLIP_CONFIG))
    config["preprocess_cfg"]["resize_mode"] = mode
    if mode is None:
        del config["preprocess_cfg"]
    (open_clip_folder / "open_clip_config.json").write_text(json.dumps(config))
    reward = make_reward("clip_score", {"path": str(open_clip_folder), "tokenizer": str(clip_tokenizer)})
    pixels = standardised([squashed(x) if mode == "squash" else cropped_evenly(x) for x in as_pillow(clip_images)])
    expected = reference_cosines(tiny_clip.random_state(2), pixels, PROMPTS, "quick_gelu")
    torch.testing.assert_close(reward(clip_images, PROMPTS), expected, rtol=0, atol=1e-5)


def test_clip_score_takes_a_folder_of_transformers_too(clip_model, clip_folder, clip_images):
    reward = make_reward("clip_score", {"path": str(clip_folder), "tokenizer": str(clip_folder)})
    expected = transformers_cosines(clip_model, clip_folder, clip_images, PROMPTS)
    torch.testing.assert_close(reward(clip_images, PROMPTS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("options", "factor"), [({}, 1.0), ({"divide_by": 26.0}, 1 / 26)])
def test_pickscore_is_what_its_model_card_computes(options, factor, clip_model, clip_folder, clip_images):
    reward = make_reward("pickscore", {"path": str(clip_folder), "processor": str(clip_folder), **options})
    for prompts in (PROMPTS, ["the \u201ccat\u201d", "rain &amp; cat", ""]):  # texts that open_clip would mend
        expected = transformers_cosines(clip_model, clip_folder, clip_images, prompts) * np.exp(4.5) * factor
        torch.testing.assert_close(reward(clip_images, prompts), expected, rtol=1e-5, atol=1e-4 * factor)


def test_pickscores_scale_is_not_rounded_with_the_weights(clip_folder, clip_images):
    options = {"path": str(clip_folder), "processor": str(clip_folder)}
    exact, rounded = make_reward("pickscore", options), make_reward("pickscore", {**options, "dtype": "bfloat16"})
    assert exact._factor == rounded._factor == pytest.approx(np.exp(4.5), rel=1e-6)
    scores = rounded(clip_images, PROMPTS)
    assert scores.dtype == torch.float32
    assert 0 < (scores - exact(clip_images, PROMPTS)).abs().max() < 0.03 * np.exp(4.5)


def test_configs_that_end_texts_at_2_mean_the_highest_number(clip_model, clip_tokenizer, clip_images, tmp_path):
    old = make_clip(clip_config(eos_token_id=2))
    old.load_state_dict(clip_model.state_dict())
    old.save_pretrained(tmp_path)
    write_preprocessor(tmp_path, SIZE)
    reward = make_reward("clip_score", {"path": str(tmp_path), "tokenizer": str(clip_tokenizer)})
    expected = transformers_cosines(clip_model, clip_tokenizer, clip_images, PROMPTS)
    torch.testing.assert_close(reward(clip_images, PROMPTS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("options", "divisor"), [({}, 1.0), ({"divide_by": 10.0}, 10.0)])
def test_the_aesthetic_rating_is_the_heads_linear_function_of_the_picture(
    options, divisor, clip_model, clip_folder, head_file, clip_images
):
    reward = make_reward("aesthetic", {"path": str(clip_folder), "head": str(head_file), **options})
    with torch.no_grad():
        pixels = standardised([cropped_evenly(picture) for picture in as_pillow(clip_images)])
        vector = clip_model.visual_projection(clip_model.vision_model(pixel_values=pixels).pooler_output).double()
    rating = vector / vector.square().sum(1, keepdim=True).sqrt()
    state = torch.load(head_file, weights_only=True)
    for place in (0, 2, 4, 6, 7):
        rating = rating @ state[f"layers.{place}.weight"].double().T + state[f"layers.{place}.bias"].double()
    expected = (rating[:, 0] / divisor).float()
    torch.testing.assert_close(reward(clip_images, [""] * 3), expected, rtol=0, atol=1e-5)
    assert torch.equal(reward(clip_images, ["a"] * 3), reward(clip_images, PROMPTS))


@pytest.fixture
def rewards(hps_folder, clip_tokenizer, open_clip_folder, clip_folder, head_file):
    """All four, by name."""
    return {
        "hpsv2": make_hps(hps_folder, clip_tokenizer),
        "clip_score": make_reward("clip_score", {"path": str(open_clip_folder), "tokenizer": str(clip_tokenizer)}),
        "pickscore": make_reward("pickscore", {"path": str(clip_folder), "processor": str(clip_folder)}),
        "aesthetic": make_reward("aesthetic", {"path": str(clip_folder), "head": str(head_file)}),
    }


def test_all_are_called_by_their_names_and_compute_no_gradients(rewards, clip_images):
    for name, reward in rewards.items():
        assert reward.name == name
        leaf = clip_images.clone().requires_grad_()
        scores = reward(leaf, PROMPTS)
        assert (scores.shape, scores.dtype, scores.requires_grad) == ((3,), torch.float32, False)
        assert torch.equal(leaf, clip_images)


def test_a_picture_with_nan_pixels_gets_nan_and_costs_the_others_nothing(rewards, clip_images):
    broken = clip_images.clone()
    broken[1, 0, 3, 3] = float("nan")
    for reward in rewards.values():
        scores = reward(broken, PROMPTS)
        assert scores.isnan().tolist() == [False, True, False]
        torch.testing.assert_close(scores[[0, 2]], reward(clip_images, PROMPTS)[[0, 2]], rtol=1e-6, atol=1e-5)


def test_scores_do_not_depend_on_the_batch(hps_folder, clip_tokenizer, clip_images):
    pictures, prompts = clip_images.repeat(3, 1, 1, 1), [*PROMPTS, *PROMPTS[::-1], *PROMPTS[1:], PROMPTS[0]]
    expected = make_hps(hps_folder, clip_tokenizer)(pictures, prompts)
    for batch_size in (1, 2, 4):
        scores = make_hps(hps_folder, clip_tokenizer, batch_size=batch_size)(pictures, prompts)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    reward = make_hps(hps_folder, clip_tokenizer)
    alone = torch.cat([reward(picture, [prompt]) for picture, prompt in zip(pictures.split(1), prompts, strict=True)])
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)


def test_a_text_that_comes_again_is_embedded_once(hps_folder, clip_tokenizer, clip_images):
    reward = make_hps(hps_folder, clip_tokenizer, batch_size=2)
    seen = []
    reward._encoder._model.text_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    prompts = ["the cat"] * 4 + ["rain"] * 4 + ["the river"] * 4
    scores = reward(clip_images.repeat(4, 1, 1, 1), prompts)
    assert seen == [2, 1]
    apart = torch.cat([reward(clip_images[i % 3][None], [prompt]) for i, prompt in enumerate(prompts)])
    torch.testing.assert_close(scores, apart, rtol=0, atol=1e-5)


def test_in_the_scorers_threads_they_say_what_they_say_alone(rewards, clip_images):
    alone = {name: reward(clip_images, PROMPTS) for name, reward in rewards.items()}
    with Scorer(rewards, timeout=60.0, workers=4) as scorer:
        tables = [pending.result() for pending in [scorer.submit(clip_images, PROMPTS) for _ in range(4)]]
    for table in tables:
        assert not any(table.failures.values())
        for name, scores in table.values.items():
            torch.testing.assert_close(scores, alone[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("The CAT  in\n the\train ", "the cat in the rain"),
        ("the \u201ccat\u201d\u2019s rain", 'the "cat"\'s rain'),
        ("rain &amp; cat", "rain & cat"),
        ("rain &amp;amp; <cat", "rain & <cat"),
        ("\uff54\uff48\uff45 cat", "the cat"),
    ],
)
def test_texts_are_mended_as_open_clip_does(written, meant, hps_folder, clip_tokenizer):
    tokens = make_hps(hps_folder, clip_tokenizer)._encoder._tokens
    expected = tiny_clip.reference_tokens(meant)[0]
    numbers = tokens([written])[0]
    assert numbers.tolist() == expected[: len(numbers)].tolist()
    assert not expected[len(numbers) :].any()


@pytest.mark.parametrize("words", [72, 73, 74, 75, 76, 77, 200])
def test_a_text_that_is_too_long_is_cut_and_keeps_its_end(words, hps_folder, clip_tokenizer):
    text = " ".join(["the", "cat", "2"][i % 3] for i in range(words))
    numbers = make_hps(hps_folder, clip_tokenizer)._encoder._tokens([text, "rain"])
    assert numbers.shape == (2, min(words + 2, 77))
    assert torch.equal(numbers, torch.cat([tiny_clip.reference_tokens(x) for x in (text, "rain")])[:, : words + 2])
    assert numbers[0, -1] == END


@pytest.mark.parametrize("use", ["hpsv2", "clip_score"])
def test_what_mends_texts_is_named_where_it_is_missing(use, monkeypatch, hps_folder, open_clip_folder, clip_tokenizer):
    monkeypatch.setattr(clip_text, "find_spec", lambda name: None)
    assert find_spec("ftfy")
    places = {"path": str(open_clip_folder if use == "clip_score" else hps_folder), "tokenizer": str(clip_tokenizer)}
    make = partial(make_reward, use, places) if use == "clip_score" else partial(make_hps, *places.values())
    with pytest.raises(MissingExtraError, match=rf"the {use} reward needs the package 'ftfy'.*'mixgrpo\[clip\]'"):
        make()
