"""The cost models of all families but FLUX.1 and Qwen-Image against the real networks, as test_counts.py does it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cost.meter import Meter
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan
from torch import Tensor

from mixgrpo.config.sections import LoraConfig
from mixgrpo.models import FlowModel, load_model
from mixgrpo.shapes import ImageSize, Shape, Training, read_shape
from mixgrpo.shapes.hunyuan_autoencoder import hunyuan_autoencoder_parts, hunyuan_decoder_peak
from mixgrpo.shapes.video_autoencoder import video_autoencoder_parts, video_decoder_peak
from mixgrpo.train.policy import Policy
from tests.models import families
from tests.models.families import TINY, save
from tests.shapes.test_counts import operations, parameters

LONG = " ".join(["fox"] * 120)
"""A prompt that is cut off where the longest one ends."""
LENGTHS = {
    "sd3": 20,
    "sd3-unguided": 20,
    "sd3.5-medium": 20,
    "flux2-dev": 64,
    "flux2-klein": 30,
    "flux2-klein-base": 30,
    "z-image": 40,
    "z-image-turbo": 40,
    "wan2.1": 20,
    "wan2.1-one-frame": 20,
    "wan2.2-a14b": 20,
    "wan2.2-ti2v-5b": 20,
    "hunyuanvideo": 20,
    "hunyuanvideo-one-frame": 20,
}
"""Family -> tokens of its longest prompt."""
DEEP: dict[str, Callable[[], Any]] = {
    "sd3-unguided": lambda: families.sd3(layers=8),
    "sd3.5-medium": lambda: families.sd3(dual=True, layers=8),
    "flux2-dev": lambda: families.flux2(layers=4),
    "z-image": lambda: families.z_image(layers=8),
    "wan2.1": lambda: families.wan(layers=8),
    "hunyuanvideo": lambda: families.hunyuan_video(layers=4),
}
"""Models of more blocks, where what stands at their boundaries counts."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    saved: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in saved:
            saved[name] = save(name, tmp_path_factory.mktemp(name) / "model")
        return saved[name]

    return get


def arguments(name: str, size: tuple[int, int] | None = None) -> dict[str, Any]:
    tiny = TINY[name]
    height, width = size or tiny.size
    guided = {"negative_prompt": LONG} if tiny.calls > 1 else {}
    return {"height": height, "width": width, "max_sequence_length": LENGTHS[name], **tiny.options, **guided}


def shape_of(name: str, folder: Path, size: tuple[int, int] | None = None) -> Shape:
    given = arguments(name, size)
    found = read_shape(
        str(folder),
        ImageSize(
            given["height"],
            given["width"],
            LENGTHS[name],
            given.get("guidance_scale", 3.5),
            num_frames=given.get("num_frames", 1),
        ),
    )
    assert found is not None
    return found


def trained(name: str, folder: Path, training: Training, size: tuple[int, int] | None = None) -> FlowModel:
    model: Any = load_model(str(folder), **arguments(name, size))
    assert training.targets in ((), tuple(model.lora_targets))
    policy = Policy(model, LoraConfig(rank=training.rank), seed=0, with_reference=False, ema_decay=0.0)
    if training.checkpointing:
        model.transformer.enable_gradient_checkpointing()
    expected = shape_of(name, folder, size).trained_parameters(training)
    assert expected == sum(weight.numel() for weight in policy.trained.values())
    return model


@pytest.mark.parametrize("name", LENGTHS)
@torch.no_grad()
def test_every_part_has_its_parameters_and_does_its_operations(name: str, folder: Callable[[str], Path]) -> None:
    shape = shape_of(name, folder(name))
    model: Any = load_model(str(folder(name)), **arguments(name))
    pipeline = model.pipeline
    encoders = [getattr(pipeline, part) for part in model.text_encoders]
    assert shape.parameters == parameters(model.transformer)
    assert shape.passes == TINY[name].calls
    everything_else = sum(network.parameters for network in shape.text_encoders) + shape.decoder.parameters
    assert everything_else + shape.other_parameters == sum(map(parameters, encoders)) + parameters(pipeline.vae)

    def encode() -> object:
        return model.encode_rows(pipeline, [LONG], max_sequence_length=LENGTHS[name], device="cpu")

    assert operations(encode) == sum(network.forward() for network in shape.text_encoders)
    conditioning, x = model.encode([LONG]), torch.randn(1, *model.latent_shape)
    assert x.numel() == shape.latent_numbers
    assert sum(tensor.numel() for tensor in conditioning.tensors.values()) == shape.conditioning_numbers
    for sigma in (0.9, 0.1):
        done = operations(lambda sigma=sigma: model.velocity(x, sigma, conditioning))
        assert done == shape.passes * shape.transformer.forward()
    assert operations(lambda: model.decode(x)) == shape.decoder.forward()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize(
    "name", ["sd3", "sd3.5-medium", "flux2-dev", "flux2-klein-base", "z-image", "wan2.1", "wan2.2-a14b", "hunyuanvideo"]
)
def test_a_backward_pass_does_as_many_operations(
    name: str, rank: int, checkpointing: bool, folder: Callable[[str], Path]
) -> None:
    shape = shape_of(name, folder(name))
    training = Training(rank=rank, targets=shape.lora_targets if rank else (), checkpointing=checkpointing)
    model = trained(name, folder(name), training)
    conditioning, x = model.encode([LONG]), torch.randn(1, *model.latent_shape)
    done = operations(lambda: model.velocity(x, 0.5, conditioning).sum().backward())
    assert done == shape.passes * (shape.transformer.forward(training) + shape.transformer.backward(training))


@pytest.mark.parametrize("name", DEEP)
def test_a_call_takes_as_much_memory(name: str, tmp_path: Path) -> None:
    DEEP[name]().save_pretrained(tmp_path)
    batch = 4
    # a clip of so few tokens that a vector for all of them counts would say little
    size = (64, 128) if TINY[name].num_frames > 1 else None
    shape = shape_of(name, tmp_path, size)
    for rank in (0, 8):
        for checkpointing in (False, True):
            training = Training(rank=rank, targets=shape.lora_targets if rank else (), checkpointing=checkpointing)
            model = trained(name, tmp_path, training, size)
            x, conditioning = torch.randn(batch, *model.latent_shape), model.encode([LONG] * batch)

            def update(model: FlowModel = model, x: Tensor = x, conditioning: Any = conditioning) -> None:
                model.velocity(x, 0.5, conditioning).square().mean().backward()

            update()  # now the gradients have their memory
            with torch.no_grad(), Meter() as sampling:
                model.velocity(x, 0.5, conditioning)
            with Meter() as updating:
                update()
            kept = shape.transformer.keeps(training, passes=shape.passes).bytes(plain=4, wide=4, adapters=4)
            case = f"rank {rank}, checkpointing {checkpointing}"
            assert batch * 4 * shape.forward_peak == pytest.approx(sampling.peak, rel=0.2), case
            assert batch * (kept + 4 * shape.backward_peak) == pytest.approx(updating.peak, rel=0.2), case


@pytest.mark.parametrize(("frames", "side"), [(1, 64), (5, 64), (9, 64), (17, 32)])
@pytest.mark.parametrize("residual", [False, True])
@torch.no_grad()
def test_a_wan_vae_decodes_clips_as_counted(frames: int, side: int, residual: bool) -> None:
    extra: dict[str, Any] = {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
    extra |= {"scale_factor_spatial": 16, "decoder_base_dim": 12}
    vae: Any = AutoencoderKLWan(base_dim=8, z_dim=4, num_res_blocks=2, **(extra if residual else {}))
    config, size = dict(vae.config), ImageSize(side, 64, 1, num_frames=frames)
    encoder, decoder = video_autoencoder_parts(config, size)
    factor = 16 if residual else 8
    z = torch.randn(1, 4, (frames - 1) // 4 + 1, side // factor, 64 // factor)
    assert encoder.parameters + decoder.parameters == parameters(vae)
    assert operations(lambda: vae.decode(z)) == decoder.forward()
    with Meter() as decoding:
        vae.decode(z)
    # of a single picture, less is set aside when the widest block of the residual one is reached
    assert 4 * video_decoder_peak(config, size) == pytest.approx(decoding.peak, rel=0.2 if residual else 0.1)


@pytest.mark.parametrize(
    ("frames", "side", "channels"),
    [(1, 64, (8, 16, 32, 32)), (9, 32, (8, 16, 32, 32)), (33, 32, (8, 16, 32, 32)), (13, 256, (2, 2, 2, 2))],
)
@torch.no_grad()
def test_a_hunyuan_vae_decodes_clips_as_counted(frames: int, side: int, channels: tuple[int, ...]) -> None:
    """More than 17 frames go in pieces; with few channels the attention's mask is what is largest."""
    vae: Any = AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=channels, norm_num_groups=2)
    config, size = dict(vae.config), ImageSize(side, side, 1, num_frames=frames)
    encoder, decoder = hunyuan_autoencoder_parts(config, size)
    z = torch.randn(1, 4, (frames - 1) // 4 + 1, side // 8, side // 8)
    assert encoder.parameters + decoder.parameters == parameters(vae)
    if channels[0] > 2:  # torch's count takes the scores of the attention to memory
        assert operations(lambda: vae.decode(z)) == decoder.forward()
    with Meter() as decoding:
        vae.decode(z)
    assert 4 * hunyuan_decoder_peak(config, size) == pytest.approx(decoding.peak, rel=0.15)


def test_a_tiny_decoder_takes_as_much_memory(folder: Callable[[str], Path]) -> None:
    """The VAE of pictures that FLUX.2 has, whose latents come packed."""
    name = "flux2-klein"
    shape, model = shape_of(name, folder(name)), load_model(str(folder(name)), **arguments(name))
    x = torch.randn(3, *model.latent_shape)
    with torch.no_grad(), Meter() as decoding:
        model.decode(x)
    assert 3 * 4 * shape.decoder_peak == pytest.approx(decoding.peak, rel=0.1)
