"""Stage one: the autoencoder, trained on renders of every face until OCR reads what it gives back."""

from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from mixgrpo.nano.data import BLURRED_SHARE, draw_pictures, make_caption, make_pictures, make_rng, make_torch_generator
from mixgrpo.nano.judge import judge
from mixgrpo.nano.stage import Metrics, Stage, StageSettings

LATENT_CHANNELS = 8
"""Packed two by two these are 32 numbers per token of the transformer: few enough to learn letters."""

VAE_SETTINGS = StageSettings(num_steps=3000, schedule_steps=6000, batch_size=16, learning_rate=1.2e-3, probe_every=1000)
"""The words read as well as clean renders do after half the schedule, so that is where it stops."""
KL_WEIGHT = 1e-6
PROBE_SIZE = 192
STATISTICS_SIZE = 1024
"""Pictures over which the mean and spread of the latents are measured."""


def make_vae() -> AutoencoderKL:
    """Return the untrained autoencoder: 0.66 M parameters, a factor of 4, 8 channels."""
    return AutoencoderKL(
        # diffusers annotates these three as tuples of one
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        block_out_channels=(16, 32, 64),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=96,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def encode(vae: AutoencoderKL, images: Tensor) -> DiagonalGaussianDistribution:
    """Encode pictures in [0, 1], [batch, 3, 32, 96], to a distribution over latents, [batch, 8, 8, 24]."""
    return vae.encode(images * 2 - 1, return_dict=False)[0]


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Decode latents to pictures around [0, 1]."""
    return vae.decode(cast("torch.FloatTensor", latents), return_dict=False)[0].float() / 2 + 0.5


def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode and decode pictures in [0, 1], at the mean of the latents."""
    return decode(vae, encode(vae, images).mode()).clamp(0, 1)


def measure_latents(vae: AutoencoderKL, seed: int) -> tuple[float, float]:
    """Return (scaling_factor, shift_factor) that give the latents of clean pictures mean 0 and spread 1."""
    pictures = draw_pictures(make_pictures(make_rng(seed, "probe", 1), STATISTICS_SIZE))
    with torch.no_grad():
        latents = encode(vae, pictures).mode()
    return 1 / latents.std().item(), latents.mean().item()


def make_vae_stage(output: Path, seed: int, settings: StageSettings = VAE_SETTINGS) -> Stage:
    """Return the stage that trains the autoencoder on L1 + MSE with a whisper of KL."""
    torch.manual_seed(seed)
    vae = make_vae()

    def loss(draw: int, size: int) -> Tensor:
        rng = make_rng(seed, "vae", draw)
        images = draw_pictures(make_pictures(rng, size, blurred=BLURRED_SHARE))
        with torch.autocast("cpu", torch.bfloat16):
            posterior = encode(vae, images)
            decoded = decode(vae, posterior.sample(make_torch_generator(seed, "vae", draw)))
        error = 2 * (decoded - images)
        return error.abs().mean() + error.square().mean() + KL_WEIGHT * posterior.kl().mean()

    def probe() -> Metrics:
        rng = make_rng(seed, "probe", 0)
        pictures = make_pictures(rng, PROBE_SIZE)
        prompts = [make_caption(picture, rng) for picture in pictures]
        images = draw_pictures(pictures)
        restored = reconstruct(vae, images)
        judged = judge(restored, prompts)
        return {
            "read_clean": judge(images, prompts)["exact"],
            "read_restored": judged["exact"],
            "colors_restored": judged["colors_exact"],
            "l1": (restored - images).abs().mean().item(),
        }

    def export() -> None:
        scaling_factor, shift_factor = measure_latents(vae, seed)
        vae.register_to_config(scaling_factor=scaling_factor, shift_factor=shift_factor)
        vae.save_pretrained(output / "vae")

    modules = nn.ModuleDict({"vae": vae})
    return Stage(name="vae", settings=settings, modules=modules, loss=loss, probe=probe, export=export)
