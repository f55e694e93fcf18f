"""Predicted bytes against those that tensors take, and against the growth of a whole process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cost.meter import Meter
from mixgrpo.config.load import load_config
from mixgrpo.config.schema import Config
from mixgrpo.cost.memory import Memory, estimate_memory
from mixgrpo.cost.operations import shape_of
from mixgrpo.train.export import load_policy
from mixgrpo.train.memory import peak_memory_bytes, reset_peak_memory

BATCH = 24
VARIANTS = {
    "float32": (),
    "float32, checkpointing": ("--model.gradient-checkpointing", "true"),
    "adapters": ("--lora.rank", "8"),
    "autocast": ("--model.autocast", "bfloat16"),
    "autocast, checkpointing": ("--model.autocast", "bfloat16", "--model.gradient-checkpointing", "true"),
    "adapters on bfloat16": ("--lora.rank", "8", "--model.dtype", "bfloat16"),
    "adapters, checkpointing, autocast": (
        *("--lora.rank", "8", "--model.dtype", "bfloat16", "--model.autocast", "bfloat16"),
        *("--model.gradient-checkpointing", "true"),
    ),
}


def nano(*args: str) -> Config:
    batches = ("--rollout.micro-batch", str(BATCH), "--loss.micro-batch", str(BATCH))
    return load_config("flux-nano", [*batches, *args])


def estimate(config: Config, ranks: int = 1, *, cuda: bool = False) -> Memory:
    shape = shape_of(config.model)
    assert shape is not None
    return estimate_memory(config, shape, ranks=ranks, cuda=cuda)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_phases_take_what_is_predicted(variant: str) -> None:
    config = nano(*VARIANTS[variant])
    policy = load_policy(config)
    model = policy.model
    x, conditioning = torch.randn(BATCH, *model.latent_shape), model.encode(["a sign"] * BATCH)
    model.velocity(x, 0.5, conditioning).float().sum().backward()  # now the gradients have their memory
    with torch.no_grad(), Meter() as sampling:
        model.velocity(x, 0.5, conditioning)
    with torch.no_grad(), Meter() as decoding:
        model.decode(x)
    with Meter() as updating:
        model.velocity(x, 0.5, conditioning).float().square().mean().backward()
    phases = estimate(config).phases
    assert phases["decoding"] == pytest.approx(decoding.peak, rel=0.02)
    assert phases["sampling"] == pytest.approx(sampling.peak, rel=0.15)
    assert phases["updating"] == pytest.approx(updating.peak, rel=0.20)


def test_what_stays_is_what_a_policy_holds() -> None:
    config = nano("--optim.ema-decay", "0.9", "--loss.kl-weight", "0.1")
    policy = load_policy(config)
    trained = sum(weight.numel() for weight in policy.trained.values())
    resident = estimate(config).resident
    assert resident["weights"] == resident["gradients"] == resident["average"] == 4 * trained
    assert resident["optimiser"] == 8 * trained
    assert resident["starting model"] == 4 * sum(w.numel() for w in policy._frozen.parameters())


def test_an_offloaded_starting_model_counts_in_its_own_phase() -> None:
    settings = ["--loss.kl-weight", "0.1", "--model.offload"]
    here, away = (estimate(load_config("flux1-dev", [*settings, choice]), cuda=True) for choice in ("false", "true"))
    copied = 2 * 11_901_408_320
    assert here.resident["starting model"] == copied
    assert "starting model" not in away.resident
    assert copied < away.phases["starting model"] < 1.1 * copied
    assert "starting model" not in here.phases


def test_predictions_made_before_the_updates_are_counted() -> None:
    """One more latent per sample and trained step for the starting model; for the sampling policy, half of them."""
    few, many = ["--rollout.share-trunk", "false"], ["--loss.updates-per-iteration", "2"]
    ends = estimate(nano(*few, "--loss.updates-per-iteration", "1")).resident["trajectories"]
    kept = estimate(nano(*few, *many)).resident["trajectories"]
    held = estimate(nano(*few, *many, "--loss.kl-weight", "0.1")).resident["trajectories"]
    assert kept - ends == pytest.approx((held - kept) / 2)
    config = nano(*few)
    latents = (
        config.prompts_per_iteration
        * config.rollout.group_size
        * config.window.size
        * 4
        * shape_of(config.model).latent_numbers
    )
    assert held - kept == latents


def test_ranks_share_the_weights_and_the_prompts() -> None:
    config = load_config("flux1-dev-mixgrpo")
    alone, together = estimate(config, cuda=True), estimate(config, 32, cuda=True)
    for name in ("weights", "gradients", "optimiser", "trajectories"):
        assert together.resident[name] == pytest.approx(alone.resident[name] / 32)
    assert together.resident["text encoders and VAE"] == alone.resident["text encoders and VAE"]
    assert alone.resident["weights"] == 4 * 11_901_408_320
    assert alone.peak > 200e9
    assert estimate(load_config("flux1-dev-mixgrpo", ["--lora.rank", "32"]), cuda=True).peak < 80e9


def test_what_a_prompt_cache_and_offloading_leave_out_is_not_counted() -> None:
    """T5-XXL's encoder and CLIP's text tower have 4.76 and 0.12 billion parameters, the VAE 84 million."""
    lora = ["--lora.rank", "32", "--model.prompt_cache"]
    held, cached = (estimate(load_config("flux1-dev", [*lora, folder]), cuda=True) for folder in ("", "somewhere"))
    assert held.resident["text encoders and VAE"] == pytest.approx(2 * 4.97e9, rel=0.01)
    assert cached.resident["text encoders and VAE"] == pytest.approx(2 * 84e6, rel=0.01)
    away = estimate(load_config("flux1-dev", [*lora, "", "--model.offload", "true"]), cuda=True)
    assert "text encoders and VAE" not in away.resident
    assert away.phases["encoding"] == pytest.approx(2 * 4.88e9, rel=0.01)
    assert away.phases["decoding"] - held.phases["decoding"] == pytest.approx(2 * 84e6, rel=0.01)


def test_quantised_weights_and_slices_take_less() -> None:
    lora = ["--lora.rank", "32", "--model.quantize"]
    plain, eight, four = (
        estimate(load_config("flux1-dev", [*lora, kind]), cuda=True) for kind in ("off", "int8", "nf4")
    )
    saved = [(plain.resident["weights"] - other.resident["weights"]) / 11.9e9 for other in (eight, four)]
    assert saved == pytest.approx([2 - 1, 2 - 0.5625], rel=0.01), "bytes a parameter; nearly all are in matrices"
    whole, sliced = (
        estimate(load_config("flux1-dev-lora", ["--model.vae_decoding", how])).phases["decoding"]
        for how in ("whole", "sliced")
    )
    assert whole == 4 * sliced
    assert 8e9 < estimate(load_config("flux1-dev-24gb"), cuda=True).peak < 10e9


def test_the_peak_of_this_process_is_seen() -> None:
    device = torch.device("cpu")
    before = reset_peak_memory(device)
    if before is None:
        pytest.skip("this system cannot start its account anew")
    kept = torch.ones(40_000_000)
    assert peak_memory_bytes(device) - before == pytest.approx(kept.nbytes, rel=0.1)
    del kept
    assert peak_memory_bytes(device) - before > 100_000_000
    assert reset_peak_memory(device) < before + 100_000_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's account of a process")
def test_a_process_grows_as_predicted() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "memory.py"
    settings = ("--model.threads", "1", "--prompts-per-iteration", "5", "--loss.micro-batch", "20")
    done = subprocess.run(
        [sys.executable, script, "--json", "flux-nano", "--", *settings], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["measured"] == pytest.approx(figures["predicted"], rel=0.15)
