"""Settings that save memory change where things are and how exact they are, not what is computed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixgrpo.config.sections import LoraConfig
from mixgrpo.errors import ConfigError, MissingExtraError
from mixgrpo.models import load as loading
from mixgrpo.train.policy import Policy
from tests.models.families import flux, save
from tests.models.test_parity import PROMPTS, draw, load
from tests.visits import Guests


@pytest.fixture(scope="module", params=["flux-dev", "sd3.5-medium"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save(request.param, tmp_path_factory.mktemp("families") / "model")


def linear_weights(module: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear) and layer.weight.numel() > 64]


def test_int8_weights_are_near_and_adapters_learn_beside_them(family: tuple[str, Path]) -> None:
    pytest.importorskip("torchao", reason="extra quantize, which writes warnings into every command, is not in dev")
    exact, quantised = load(*family), load(*family, quantize="int8")
    kinds = {type(weight).__name__ for weight in linear_weights(quantised.transformer)}
    assert kinds == {"Int8Tensor"}
    x = torch.randn(2, *exact.latent_shape, generator=torch.Generator().manual_seed(1))
    expected = exact.velocity(x, 0.75, exact.encode(PROMPTS))
    near = quantised.velocity(x, 0.75, quantised.encode(PROMPTS))
    assert 0 < (near - expected).norm() < 0.05 * expected.norm()
    policy = Policy(quantised, LoraConfig(rank=2, alpha=4), seed=0, with_reference=True, ema_decay=0.0)
    optimizer = torch.optim.AdamW(policy.trained.values(), lr=1e-2)
    conditioning = quantised.encode(PROMPTS)

    def loss() -> Tensor:
        return (quantised.velocity(x, 0.75, conditioning) - expected - 0.1).square().mean()

    before = loss().item()
    for _ in range(5):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss().item() < 0.9 * before
    # The reference is the quantised model with its adapters off.
    with torch.no_grad(), policy.reference():
        torch.testing.assert_close(policy.velocity(x, 0.75, conditioning), near, rtol=0, atol=1e-6)


def test_nf4_without_a_gpu_is_refused(family: tuple[str, Path]) -> None:
    pytest.importorskip("bitsandbytes", reason="as torchao above")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"model\.quantize = 'nf4' needs a CUDA device.*int8 needs none"):
        load(*family, quantize="nf4")


def test_nf4_weights_load_and_take_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU. Without one diffusers refuses, although bitsandbytes computes on CPUs, so it is told to go on."""
    pytest.importorskip("bitsandbytes", reason="as torchao above")
    if not torch.cuda.is_available():
        from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer as Quantizer

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(Quantizer, "validate_environment", lambda *_, **__: None)
        monkeypatch.setattr(Quantizer, "update_device_map", lambda *_: {"": "cpu"})
    torch.manual_seed(2)
    flux(width=128).save_pretrained(tmp_path)  # on a CPU, layers must have multiples of 64 inputs
    quantised = load("flux-dev", tmp_path, quantize="nf4", device="cpu", dtype="bfloat16", autocast="bfloat16")
    assert {type(weight).__name__ for weight in linear_weights(quantised.transformer)} == {"Params4bit"}
    exact = load("flux-dev", tmp_path, device="cpu")
    x = torch.randn(2, *exact.latent_shape, generator=torch.Generator().manual_seed(1))
    expected = exact.velocity(x, 0.75, exact.encode(PROMPTS))
    policy = Policy(quantised, LoraConfig(rank=2, alpha=4), seed=0, with_reference=False, ema_decay=0.0)
    near = quantised.velocity(x, 0.75, quantised.encode(PROMPTS)).float()
    assert 0 < (near - expected).norm() < 0.3 * expected.norm()
    near.square().mean().backward()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in policy.trained.values())


@pytest.mark.parametrize(("kind", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_quantising_without_its_package_says_what_to_install(
    family: tuple[str, Path], kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixgrpo.models.load.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=rf"needs the package '{package}'.*mixgrpo\[quantize\]"):
        load(*family, quantize=kind)


def test_offloaded_parts_are_at_work_only_while_they_are_needed(
    family: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = draw(load(*family), PROMPTS)
    model = load(*family)
    pipeline = model.pipeline
    parts = {name: getattr(pipeline, name) for name in ("vae", *model.text_encoders)}
    model.offload()
    guests = Guests(monkeypatch)  # only now: what was moved away from a GPU rests here
    seen = []

    def spy(name: str, original: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            seen.append((name, {part for part, network in parts.items() if guests.away(network)}))
            return original(*args, **kwargs)

        return run

    for name, method in (("transformer", "forward"), ("vae", "decode"), *((part, "forward") for part in parts)):
        part = getattr(pipeline, name)
        monkeypatch.setattr(part, method, spy(name, getattr(part, method)))
    assert torch.equal(draw(model, PROMPTS), expected)
    encoders = set(model.text_encoders)
    for name, away in seen:
        assert away == (set() if name == "transformer" else {"vae"} if name == "vae" else encoders)
    assert {name for name, _ in seen} == {"transformer", *parts}


def test_slices_and_tiles_decode_the_same_picture(family: tuple[str, Path]) -> None:
    whole = load(*family, size=(64, 64))
    x = torch.randn(3, *whole.latent_shape, generator=torch.Generator().manual_seed(1))
    expected = whole.decode(x)
    sliced = load(*family, size=(64, 64), vae_decoding="sliced")
    assert sliced.pipeline.vae.use_slicing
    assert not sliced.pipeline.vae.use_tiling
    torch.testing.assert_close(sliced.decode(x), expected, rtol=0, atol=1e-5)
    tiled = load(*family, size=(64, 64), vae_decoding="tiled")
    vae = tiled.pipeline.vae
    assert vae.use_tiling
    vae.tile_latent_min_size, vae.tile_sample_min_size = 16, 32  # smaller than the picture
    # The VAE's norms see a tile only, so it is not the same picture: far nearer than those of other latents, though.
    assert (tiled.decode(x) - expected).abs().mean() < 0.5 * (expected.roll(1, 0) - expected).abs().mean()


def test_offloaded_parts_are_not_even_moved_while_loading() -> None:
    moved: list[str] = []

    class Part(nn.Linear):
        def __init__(self, name: str) -> None:
            super().__init__(1, 1)
            self._name = name

        def to(self, *args: Any, **kwargs: Any) -> Any:
            moved.append(self._name)
            return self

    parts = {name: Part(name) for name in ("transformer", "vae", "text_encoder")} | {"tokenizer": object()}
    loading._place(SimpleNamespace(components=parts), "cpu", resting=("vae", "text_encoder"))
    assert moved == ["transformer"]
