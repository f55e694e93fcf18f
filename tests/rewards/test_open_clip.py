"""Checkpoints of open_clip as transformers' models, against the forward pass written out in `tiny_clip`."""

import pytest
import tiny_clip
import torch
from transformers import CLIPModel

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.open_clip import VIT_H_14, Architecture, build_clip


def tiny_architecture(activation="gelu"):
    return Architecture(**tiny_clip.NUMBERS, activation=activation)


def vectors(model, pixels, numbers):
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        return image, model.text_projection(model.text_model(input_ids=numbers).pooler_output)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def numbers():
    return torch.cat([tiny_clip.reference_tokens(prompt) for prompt in tiny_clip.PROMPTS])


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_converted_model_gives_the_vectors_of_the_original(activation, pixels, numbers):
    state = tiny_clip.random_state()
    model = build_clip(state, tiny_architecture(activation), who="it")
    image, text = vectors(model, pixels, numbers)
    torch.testing.assert_close(image, tiny_clip.reference_image_vectors(state, pixels, activation), rtol=0, atol=1e-5)
    torch.testing.assert_close(text, tiny_clip.reference_text_vectors(state, numbers, activation), rtol=0, atol=1e-5)
    assert model.logit_scale.item() == 4.5
    assert not model.training


def test_every_weight_of_the_original_matters(pixels, numbers):
    """So that the test above would notice any that is not carried over: a change of each changes a vector."""
    state = tiny_clip.random_state()
    before = torch.stack(
        [tiny_clip.reference_image_vectors(state, pixels), tiny_clip.reference_text_vectors(state, numbers)]
    )
    generator = torch.Generator().manual_seed(2)
    for key in state.keys() - {"logit_scale"}:
        changed = {**state, key: state[key] + 0.3 * torch.randn(state[key].shape, generator=generator)}
        after = torch.stack(
            [tiny_clip.reference_image_vectors(changed, pixels), tiny_clip.reference_text_vectors(changed, numbers)]
        )
        assert (after - before).abs().max() > 1e-3, key


def test_half_precision_checkpoints_are_taken_to_float32(pixels, numbers):
    state = {key: tensor.half() for key, tensor in tiny_clip.random_state().items()}
    model = build_clip(state, tiny_architecture(), who="it")
    image, text = vectors(model, pixels, numbers)
    wide = {key: tensor.float() for key, tensor in state.items()}
    torch.testing.assert_close(image, tiny_clip.reference_image_vectors(wide, pixels), rtol=0, atol=1e-5)
    torch.testing.assert_close(text, tiny_clip.reference_text_vectors(wide, numbers), rtol=0, atol=1e-5)


def test_what_follows_the_end_token_changes_nothing(numbers):
    """open_clip fills up with zeros, transformers repeats the end token; the rewards stop after the longest text."""
    state = tiny_clip.random_state()
    model = build_clip(state, tiny_architecture(), who="it")
    expected = tiny_clip.reference_text_vectors(state, numbers)
    short = numbers[:2]
    length = int((short == tiny_clip.END).int().argmax(dim=1).max()) + 1
    repeated = torch.where(numbers == 0, tiny_clip.END, numbers)
    with torch.no_grad():
        for padded, rows in ((numbers, slice(None)), (repeated, slice(None)), (short[:, :length], slice(2))):
            text = model.text_projection(model.text_model(input_ids=padded).pooler_output)
            torch.testing.assert_close(text, expected[rows], rtol=0, atol=1e-5)


def without(state, key):
    return {name: tensor for name, tensor in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "visual.ln_pre.bias"), "it is not a .*1 missing: vision_model.pre_layrnorm.bias$"),
        (lambda s: without(s, "logit_scale"), "1 missing: logit_scale$"),
        (
            lambda s: without(s, "transformer.resblocks.1.attn.in_proj_bias"),
            r"3 missing: text_model.encoder.layers.1.self_attn.k_proj.bias, .*q_proj.bias, .*v_proj.bias$",
        ),
        (lambda s: {**s, "visual.head.weight": torch.ones(1)}, "1 unknown: visual.head.weight$"),
        (
            lambda s: {**s, "transformer.resblocks.0.attn.gate": torch.ones(1)},
            "1 unknown: transformer.resblocks.0.attn",
        ),
        (
            lambda s: {**s, "transformer.resblocks.3.ln_1.bias": torch.ones(24)},
            "1 unknown: text_model.encoder.layers.3.layer_norm1.bias$",
        ),
        (
            lambda s: {**s, "visual.proj": torch.ones(32, 8)},
            r"1 of the wrong shape: visual_projection.weight \(\[8, 32\] instead of \[16, 32\]\)$",
        ),
        (
            lambda s: {**s, "visual.transformer.resblocks.0.attn.in_proj_weight": torch.ones(64, 32)},
            r"3 of the wrong shape: vision_model.encoder.layers.0.self_attn.q_proj.weight \(\[22, 32\]",
        ),
    ],
)
def test_a_checkpoint_that_holds_more_or_less_is_refused_with_the_names(change, message):
    with pytest.raises(ConfigError, match=message):
        build_clip(change(tiny_clip.random_state()), tiny_architecture(), who="it")


def test_the_numbers_of_vit_h_14_are_those_of_open_clip():
    """986.11 million parameters, heads 80 wide for pictures and 64 for texts, plain GELU."""
    config = VIT_H_14.config()
    with torch.device("meta"):
        model = CLIPModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 986_109_441
    vision, text = model.vision_model.encoder.layers[0].self_attn, model.text_model.encoder.layers[0].self_attn
    assert (vision.head_dim, vision.num_heads, text.head_dim, text.num_heads) == (80, 16, 64, 16)
    assert (config.vision_config.hidden_act, config.text_config.hidden_act) == ("gelu", "gelu")
    assert model.vision_model.embeddings.position_embedding.num_embeddings == 257
    assert config.text_config.eos_token_id == 49407
