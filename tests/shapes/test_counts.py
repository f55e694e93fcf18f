"""Parameters and operations from config files alone against those of the real networks, counted by torch."""

import json
from collections.abc import Callable
from importlib import resources

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from mixgrpo.config.schema import LoraConfig
from mixgrpo.models import MODELS, FlowModel, load_model
from mixgrpo.shapes import FAMILIES, ImageSize, Shape, Training, read_shape
from mixgrpo.shapes.flux import LORA_TARGETS, flux_transformer
from mixgrpo.train.policy import Policy

NANO = ImageSize(32, 96, 48)
DEV = "black-forest-labs/FLUX.1-dev"


@pytest.fixture(scope="module")
def shape() -> Shape:
    found = read_shape("flux-nano", NANO)
    assert found is not None
    return found


@pytest.fixture
def model() -> FlowModel:
    return load_model("flux-nano", height=32, width=96, max_sequence_length=48)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def operations(work: Callable[[], object]) -> int:
    # torch's counter has no formula for the fused attention of a CPU
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


def forward(model: FlowModel) -> Tensor:
    return model.velocity(torch.randn(1, *model.latent_shape), 0.5, model.encode(["a sign"]))


def test_a_plan_knows_every_family_that_can_be_trained() -> None:
    assert set(FAMILIES) == set(MODELS)


def test_flux_nano_has_as_many_parameters_as_its_config_says(shape: Shape, model: FlowModel) -> None:
    pipeline = model.pipeline
    assert shape.transformer.parameters == parameters(pipeline.transformer)
    assert [network.parameters for network in shape.text_encoders] == [
        parameters(pipeline.text_encoder),
        parameters(pipeline.text_encoder_2),
    ]
    assert shape.decoder.parameters + shape.other_parameters == parameters(pipeline.vae)


@torch.no_grad()
def test_every_part_of_flux_nano_does_as_many_operations(shape: Shape, model: FlowModel) -> None:
    encoded = sum(network.forward() for network in shape.text_encoders)
    assert operations(lambda: model.encode(["a sign"])) == encoded
    assert operations(lambda: forward(model)) == shape.transformer.forward() + encoded
    assert operations(lambda: model.decode(torch.randn(1, *model.latent_shape))) == shape.decoder.forward()
    assert model.latent_shape[0] * model.latent_shape[1] == shape.latent_numbers


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("rank", "targets"), [(0, ()), (8, LORA_TARGETS), (4, ("norm.linear", "proj_out")), (3, ("attn.to_q",))]
)
def test_a_backward_pass_does_as_many_operations(
    rank: int, targets: tuple[str, ...], checkpointing: bool, shape: Shape, model: FlowModel
) -> None:
    training = train(model, rank=rank, targets=targets, checkpointing=checkpointing)
    before = operations(lambda: model.encode(["a sign"]))
    done = operations(lambda: forward(model).sum().backward()) - before
    expected = shape.transformer.forward(training) + shape.transformer.backward(training)
    # adapters on queries alone let torch leave out gradients that the count includes
    assert expected == (done if targets != ("attn.to_q",) else pytest.approx(done, rel=0.01))


def train(model: FlowModel, *, rank: int, targets: tuple[str, ...], checkpointing: bool) -> Training:
    lora = LoraConfig(rank=rank, target_modules=targets)
    policy = Policy(model, lora, seed=0, with_reference=False, ema_decay=0.0)
    if checkpointing:
        model.transformer.enable_gradient_checkpointing()
    training = Training(rank=rank, targets=targets, checkpointing=checkpointing)
    found = read_shape("flux-nano", NANO)
    assert found is not None
    assert found.transformer.trained_parameters(training) == sum(w.numel() for w in policy.trained.values())
    return training


def test_another_transformer_does_as_many_operations() -> None:
    config = {
        "in_channels": 12,
        "num_layers": 3,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 5,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 20,
        "axes_dims_rope": (4, 6, 6),
    }
    transformer = FluxTransformer2DModel(**config)
    network = flux_transformer(config, text=7, image=11)
    assert network.parameters == parameters(transformer)
    assert operations(lambda: call(transformer, text=7, image=11)) == network.forward()


def call(transformer: FluxTransformer2DModel, *, text: int, image: int) -> Tensor:
    config = transformer.config
    return transformer(
        hidden_states=torch.zeros(1, image, config.in_channels),
        timestep=torch.zeros(1),
        guidance=torch.zeros(1) if config.guidance_embeds else None,
        pooled_projections=torch.zeros(1, config.pooled_projection_dim),
        encoder_hidden_states=torch.zeros(1, text, config.joint_attention_dim),
        txt_ids=torch.zeros(text, 3),
        img_ids=torch.zeros(image, 3),
        return_dict=False,
    )[0]


def test_flux1_dev_at_full_size_without_its_weights() -> None:
    """The published numbers build diffusers' own FLUX.1-dev on torch's device without memory."""
    shape = read_shape(DEV, ImageSize(720, 720, 512))
    assert shape is not None
    text = resources.files("mixgrpo") / "shapes" / "published" / "flux1-dev.json"
    parts = json.loads(text.read_text(encoding="utf-8"))
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(parts["transformer"])
        vae = AutoencoderKL.from_config(parts["vae"])
        clip = CLIPTextModel(CLIPTextConfig(**parts["text_encoder"]))
        t5 = T5EncoderModel(T5Config(**parts["text_encoder_2"]))
        work = operations(lambda: call(transformer, text=512, image=45 * 45).sum().backward())
        with torch.no_grad():
            decoded = operations(lambda: vae.decode(torch.zeros(1, 16, 90, 90)))
    assert parameters(transformer) == shape.transformer.parameters == 11_901_408_320
    assert parameters(vae) == shape.decoder.parameters + shape.other_parameters
    assert [parameters(clip), parameters(t5)] == [network.parameters for network in shape.text_encoders]
    assert work == shape.transformer.forward() + shape.transformer.backward(Training())
    assert decoded == shape.decoder.forward()
    assert shape.tokens == 2537
