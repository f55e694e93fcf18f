"""`model.attention`: what functions beside torch's own are given, and where there is no choice."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixgrpo.config.sections import LoraConfig
from mixgrpo.errors import ConfigError
from mixgrpo.models.pipeline import PipelineModel
from mixgrpo.train.policy import Policy
from tests.models.families import save
from tests.models.test_parity import PROMPTS, load

BACKEND = "_native_math"
"""One that runs on a CPU and is chosen as flash-attn is."""

FAMILIES = {
    "flux-dev": "flux",
    "flux2-klein-base": "flux2",
    "qwen-image": "qwenimage",
    "z-image": "z_image",
    "wan2.1": "wan",
    "wan2.2-a14b": "wan",
    "hunyuanvideo": "hunyuan_video",
}
"""Family -> the end of the name of diffusers' module."""

Seen = list[tuple[torch.dtype, torch.dtype, torch.dtype, str]]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save(request.param, tmp_path_factory.mktemp("families") / "model")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Undo that diffusers also notes a chosen backend for all models of the process."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    active = Registry._active_backend
    yield
    Registry.set_active_backend(active)


@pytest.fixture
def gpu_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch's norms return float32 under autocast, as on a GPU."""
    plain = nn.RMSNorm.forward

    def forward(self: nn.RMSNorm, x: Tensor) -> Tensor:
        return plain(self, x).float() if torch.is_autocast_enabled("cpu") else plain(self, x)

    monkeypatch.setattr(nn.RMSNorm, "forward", forward)


def spy(name: str, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Note the types of queries, keys and values, and the backend, of all calls of the attention."""
    seen: Seen = []
    module: Any = importlib.import_module(f"diffusers.models.transformers.transformer_{FAMILIES[name]}")
    attend = module.dispatch_attention_fn

    def dispatch(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        seen.append(
            (query.dtype, key.dtype, value.dtype, str(getattr(options["backend"], "value", options["backend"])))
        )
        return attend(query, key, value, **options)

    monkeypatch.setattr(module, "dispatch_attention_fn", dispatch)
    return seen


def noise(model: PipelineModel) -> Tensor:
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.usefixtures("gpu_norms")
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_under_autocast_attention_gets_one_type(
    weights: str, checkpointing: bool, family: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = family
    seen = spy(name, monkeypatch)
    options = {"dtype": weights, "autocast": "bfloat16", "gradient_checkpointing": checkpointing}
    model = load(name, folder, attention=BACKEND, **options)
    policy = Policy(model, LoraConfig(rank=2, alpha=4), seed=0, with_reference=False, ema_decay=0.0)
    model.transformer.train()
    conditioning = model.encode(PROMPTS)
    for sigma in (0.9, 0.2):  # of two transformers, both
        model.velocity(noise(model), sigma, conditioning).float().square().mean().backward()
    half = torch.bfloat16
    assert set(seen) == {(half, half, half, BACKEND)}
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in policy.trained.values())


@pytest.mark.usefixtures("gpu_norms")
def test_torchs_own_attention_is_left_alone(family: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, folder = family
    seen = spy(name, monkeypatch)
    model = load(name, folder, autocast="bfloat16")
    model.velocity(noise(model), 0.9, model.encode(PROMPTS))
    full, half = torch.float32, torch.bfloat16
    assert set(seen) == {(full, full, half, "None")}, "so the spy would see float32 above, too"


def test_the_casts_change_rounding_only(family: tuple[str, Path]) -> None:
    name, folder = family
    plain = load(name, folder, autocast="bfloat16")
    model = load(name, folder, autocast="bfloat16", attention=BACKEND)
    x = noise(plain)
    expected = plain.velocity(x, 0.5, plain.encode(PROMPTS)).float()
    assert (model.velocity(x, 0.5, model.encode(PROMPTS)).float() - expected).norm() < 0.02 * expected.norm()


def test_without_autocast_nothing_is_cast(family: tuple[str, Path]) -> None:
    name, folder = family
    plain, model = load(name, folder), load(name, folder, attention=BACKEND)
    x = noise(plain)
    expected = plain.velocity(x, 0.5, plain.encode(PROMPTS))
    torch.testing.assert_close(model.velocity(x, 0.5, model.encode(PROMPTS)), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("gpu_norms")
def test_a_compiled_transformer_keeps_the_casts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("flux-dev", save("flux-dev", tmp_path / "model"), attention=BACKEND, autocast="bfloat16")
    x, conditioning = noise(model), model.encode(PROMPTS)
    expected = model.velocity(x, 0.5, conditioning)
    seen = spy("flux-dev", monkeypatch)
    model.transformer.compile(backend="eager")
    torch.testing.assert_close(model.velocity(x, 0.5, conditioning), expected, rtol=0, atol=1e-2)
    half = torch.bfloat16
    assert set(seen) <= {(half, half, half, BACKEND)}


@pytest.mark.parametrize("name", ["sd3", "sd3.5-medium"])
def test_where_there_is_no_choice_it_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.attention '_native_math' would do nothing .*JointAttn.*to native"):
        load(name, save(name, tmp_path / "model"), attention=BACKEND)


def test_a_backend_that_is_not_here_says_what_it_needs(tmp_path: Path) -> None:
    folder = save("flux-dev", tmp_path / "model")
    with pytest.raises(ConfigError, match=r"model\.attention 'flash' cannot be used here: .*flash-attn"):
        load("flux-dev", folder, attention="flash")
    with pytest.raises(ConfigError, match=r"model\.attention 'flas' cannot be used here"):
        load("flux-dev", folder, attention="flas")
