"""The cost model of Qwen-Image against the real networks, as test_counts.py does it for FLUX.1."""

import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from cost.meter import Meter
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mixgrpo.config.sections import LoraConfig
from mixgrpo.models import FlowModel, load_model
from mixgrpo.shapes import ImageSize, Shape, Training, read_shape
from mixgrpo.shapes.qwen import LORA_TARGETS
from mixgrpo.train.policy import Policy
from tests.models.families import qwen_image, save
from tests.shapes.test_counts import operations, parameters

LENGTH = 40
LONG = " ".join(["fox"] * 60)
"""A prompt that is cut off where the longest one ends."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("qwen-image", tmp_path_factory.mktemp("qwen") / "model")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of more blocks, where what stands at their boundaries counts."""
    folder = tmp_path_factory.mktemp("qwen") / "deep"
    qwen_image(layers=8).save_pretrained(folder)
    return folder


def shape_of(folder: Path, guidance_scale: float = 1.0) -> Shape:
    found = read_shape(str(folder), ImageSize(32, 64, LENGTH, guidance_scale))
    assert found is not None
    return found


def load(folder: Path, guidance_scale: float = 1.0) -> FlowModel:
    return load_model(
        str(folder),
        height=32,
        width=64,
        max_sequence_length=LENGTH,
        guidance_scale=guidance_scale,
        negative_prompt=LONG if guidance_scale > 1.0 else "",
    )


def forward(model: FlowModel) -> Tensor:
    conditioning = model.encode([LONG])
    return model.velocity(torch.randn(1, *model.latent_shape), 0.5, conditioning)


def test_it_has_as_many_parameters_as_its_config_says(folder: Path) -> None:
    shape, pipeline = shape_of(folder), load(folder).pipeline
    assert shape.transformer.parameters == parameters(pipeline.transformer)
    seen_and_read = shape.text_encoders[0].parameters + shape.other_parameters + shape.decoder.parameters
    assert seen_and_read == parameters(pipeline.text_encoder) + parameters(pipeline.vae)


@torch.no_grad()
def test_every_part_does_as_many_operations(folder: Path) -> None:
    shape, model = shape_of(folder), load(folder)
    conditioning = model.encode([LONG])
    assert conditioning.tensors["text"].shape[1] == LENGTH
    x = torch.randn(1, *model.latent_shape)
    assert operations(lambda: model.velocity(x, 0.5, conditioning)) == shape.transformer.forward()
    assert operations(lambda: model.decode(x)) == shape.decoder.forward()
    assert x.numel() == shape.latent_numbers
    assert conditioning.tensors["text"].numel() == shape.conditioning_numbers
    reader = model.pipeline.text_encoder
    tokens = torch.zeros(1, 34 + LENGTH, dtype=torch.long)
    assert operations(lambda: reader(input_ids=tokens)) == shape.text_encoders[0].forward()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize(("rank", "targets"), [(0, ()), (8, LORA_TARGETS)])
def test_a_backward_pass_does_as_many_operations(
    rank: int, targets: tuple[str, ...], guidance_scale: float, checkpointing: bool, folder: Path
) -> None:
    shape, model = shape_of(folder, guidance_scale), load(folder, guidance_scale)
    Policy(model, LoraConfig(rank=rank, target_modules=targets), seed=0, with_reference=False, ema_decay=0.0)
    if checkpointing:
        model.transformer.enable_gradient_checkpointing()
    training = Training(rank=rank, targets=targets, checkpointing=checkpointing)
    assert shape.passes == (2 if guidance_scale > 1 else 1)
    conditioning = model.encode([LONG])
    x = torch.randn(1, *model.latent_shape)
    done = operations(lambda: model.velocity(x, 0.5, conditioning).sum().backward())
    assert done == shape.passes * (shape.transformer.forward(training) + shape.transformer.backward(training))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("rank", [0, 8])
def test_a_call_takes_as_much_memory(rank: int, guidance_scale: float, checkpointing: bool, deep: Path) -> None:
    shape, model, batch = shape_of(deep, guidance_scale), load(deep, guidance_scale), 8
    Policy(model, LoraConfig(rank=rank), seed=0, with_reference=False, ema_decay=0.0)
    if checkpointing:
        model.transformer.enable_gradient_checkpointing()
    training = Training(rank=rank, targets=shape.lora_targets, checkpointing=checkpointing)
    x, conditioning = torch.randn(batch, *model.latent_shape), model.encode([LONG] * batch)
    model.velocity(x, 0.5, conditioning).square().mean().backward()  # now the gradients have their memory
    with torch.no_grad(), Meter() as sampling:
        model.velocity(x, 0.5, conditioning)
    with Meter() as updating:
        model.velocity(x, 0.5, conditioning).square().mean().backward()
    kept = shape.transformer.keeps(training, passes=shape.passes).bytes(plain=4, wide=4, adapters=4)
    assert batch * 4 * shape.forward_peak == pytest.approx(sampling.peak, rel=0.2)
    assert batch * (kept + 4 * shape.backward_peak) == pytest.approx(updating.peak, rel=0.2)


@torch.no_grad()
def test_decoding_takes_as_much_memory(folder: Path) -> None:
    model = load(folder)
    x = torch.randn(3, *model.latent_shape)
    with Meter() as decoding:
        model.decode(x)
    assert 3 * 4 * shape_of(folder).decoder_peak == pytest.approx(decoding.peak, rel=0.05)


def test_qwen_image_at_full_size_without_its_weights() -> None:
    """The published numbers build the real classes on torch's device without memory."""
    shape = read_shape("Qwen/Qwen-Image", ImageSize(1024, 1024, 512, 4.0))
    assert shape is not None
    parts = json.loads((resources.files("mixgrpo") / "shapes" / "published" / "qwen-image.json").read_text())
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel.from_config(parts["transformer"])
        vae = AutoencoderKLQwenImage.from_config(parts["vae"])
        reader = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**parts["text_encoder"]))
        decoded = operations(lambda: vae.decode(torch.zeros(1, 16, 1, 128, 128)))
    assert parameters(transformer) == shape.transformer.parameters == 20_430_401_088
    everything_else = shape.text_encoders[0].parameters + shape.decoder.parameters + shape.other_parameters
    assert parameters(vae) + parameters(reader) == everything_else
    assert decoded == shape.decoder.forward()
    assert (shape.tokens, shape.passes) == (512 + 64 * 64, 2)
