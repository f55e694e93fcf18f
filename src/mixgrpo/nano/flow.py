"""Stage three: the transformer, by flow matching on the VAE's latents, together with both text encoders.

Convention of the whole project: sigma 1 is noise, x = (1 - sigma) x0 + sigma * noise, and the velocity is noise - x0.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from transformers import CLIPTextModel, T5EncoderModel

from mixgrpo.errors import CheckpointError
from mixgrpo.nano.data import (
    BLURRED_SHARE,
    CaptionNoise,
    Picture,
    draw_pictures,
    make_caption,
    make_pictures,
    make_rng,
    make_torch_generator,
)
from mixgrpo.nano.folder import GUIDANCE_SCALE, make_pipeline, make_transformer, sample, save_folder
from mixgrpo.nano.judge import judge
from mixgrpo.nano.prompts import heldout_prompts
from mixgrpo.nano.render import HEIGHT, WIDTH
from mixgrpo.nano.stage import Metrics, Stage, StageSettings, make_workers
from mixgrpo.nano.text import PromptEncoder
from mixgrpo.nano.vae import encode as encode_images

FLOW_SETTINGS = StageSettings(
    num_steps=3300,
    decay_steps=700,
    batch_size=32,
    num_shards=2,
    learning_rate=1e-3,
    warmup_steps=200,
    ema_decay=0.998,
    probe_every=500,
)
FLOW_NOISE = CaptionNoise(wrong_letter=0.4, wrong_color=0.05)
LATE_NOISE = CaptionNoise(wrong_letter=0.5, wrong_color=0.05)
LATE_FROM = 2500
"""From this step on the captions have `LATE_NOISE`: the knob that sets how imperfect the finished model is.

The letters were learnt by then, and 43 % of the held-out words exact; as the rate decays the strokes become sharper,
and without more wrong captions the model would leave post-training less to do.
"""
FLAW_SETTINGS = StageSettings(
    num_steps=400,
    batch_size=32,
    num_shards=2,
    learning_rate=3e-4,
    warmup_steps=20,
    decay_steps=200,
    ema_decay=0.99,
    save_every=100,
    probe_every=100,
)
FLAW_NOISE = CaptionNoise(wrong_letter=0.85, wrong_letters=2, wrong_color=0.05)
"""Captions of the last stage. After the one before it seven of ten held-out words are right, because the model takes a
misspelt caption for the picture's true word more often than not; post-training is to find more to do than that."""
POOL_SIZE = 32_768
"""Pictures encoded once and drawn from in every epoch; their captions are written anew each time."""
TRAINING_SHIFT = 2.0
"""Moves the trained sigmas towards noise, where the letters are decided."""
PROBE_STEPS = 8
PROBE_SIZE = 128


def pool_pictures(seed: int, chunk: int, size: int) -> list[Picture]:
    """Choose the pictures of one chunk of the pool: words in the middle, so that a letter's place fixes its pixels."""
    return make_pictures(make_rng(seed, "pool", chunk), size, blurred=BLURRED_SHARE, shifted=False)


def pack(latents: Tensor) -> Tensor:
    """Pack latents two by two as the pipeline does: [batch, 8, 8, 24] -> [batch, 48, 32]."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def make_pool(vae: AutoencoderKL, path: Path, seed: int, size: int, chunk_size: int = 256) -> Tensor:
    """Encode the pool of pictures, or load it if an earlier run did: normalised and packed, [size, 48, 32]."""
    if path.exists():
        return load_file(path)["latents"]
    scale, shift = float(vae.config["scaling_factor"]), float(vae.config["shift_factor"])

    def encode(chunk: int) -> Tensor:
        images = draw_pictures(pool_pictures(seed, chunk, chunk_size))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents = encode_images(vae, images).mode()
        if (chunk + 1) % 16 == 0:
            print(f"flow: encoded {(chunk + 1) * chunk_size} of {size} pictures", flush=True)
        return pack((latents.float() - shift) * scale).half()

    pool = torch.cat(list(make_workers(2).map(encode, range(size // chunk_size))))
    partial = path.with_suffix(".partial")
    save_file({"latents": pool}, partial)
    partial.replace(path)
    return pool


def choose(seed: int, draw: int, *, batch_size: int, size: int) -> list[int]:
    """Choose the pool's pictures for a draw: every epoch is a new order of the whole pool."""
    per_epoch = size // batch_size
    epoch, place = divmod(draw, per_epoch)
    order = torch.randperm(size, generator=make_torch_generator(seed, "epoch", epoch))
    return order[place * batch_size : (place + 1) * batch_size].tolist()


def training_sigmas(batch_size: int, generator: torch.Generator) -> Tensor:
    """Draw one sigma per picture, spread evenly over the batch and shifted towards noise, [batch]."""
    even = (torch.arange(batch_size) + torch.rand(batch_size, generator=generator)) / batch_size
    return TRAINING_SHIFT * even / (1 + (TRAINING_SHIFT - 1) * even)


class FlowModel(nn.Module):
    """The transformer behind its prompt encoder: packed latents, sigmas and prompts in, velocities out."""

    def __init__(self, encoder: PromptEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.transformer = make_transformer()
        # Two by two packing of the latents halves both sides.
        height, width = HEIGHT // 8, WIDTH // 8
        image_ids = FluxPipeline._prepare_latent_image_ids(1, height, width, torch.device("cpu"), torch.float32)
        self.register_buffer("image_ids", image_ids, persistent=False)

        self._calls: dict[str, Callable[..., Any]] = {"transformer": self.transformer, "t5": self.encoder.t5}

    def compile_calls(self) -> None:
        """Compile what training calls, and nothing else: the pipeline goes on with the plain modules."""
        self._calls = {name: torch.compile(call) for name, call in self._calls.items()}

    def forward(self, x: Tensor, sigmas: Tensor, prompts: list[str]) -> Tensor:
        """Predict the velocity of packed latents, [batch, 48, 32]."""
        embeddings, pooled = self.encoder(prompts, t5=self._calls["t5"])
        return self._calls["transformer"](
            hidden_states=x,
            encoder_hidden_states=embeddings,
            pooled_projections=pooled,
            timestep=sigmas,
            guidance=torch.full_like(sigmas, GUIDANCE_SCALE),
            txt_ids=torch.zeros(embeddings.shape[1], 3),
            img_ids=self.image_ids,
            return_dict=False,
        )[0]


def load_vae(output: Path) -> AutoencoderKL:
    """Load the product of the first stage, frozen."""
    if not (output / "vae").is_dir():
        raise CheckpointError(f"no autoencoder in {output}: run the stage 'vae' first")
    vae = AutoencoderKL.from_pretrained(output / "vae")
    return vae.eval().requires_grad_(False)


def load_encoder(output: Path) -> PromptEncoder:
    """Load the product of the second stage."""
    if not (output / "text_encoder_2").is_dir():
        raise CheckpointError(f"no text encoders in {output}: run the stage 'text' first")
    encoder = PromptEncoder()
    encoder.clip.load_state_dict(CLIPTextModel.from_pretrained(output / "text_encoder").state_dict())
    encoder.t5.load_state_dict(T5EncoderModel.from_pretrained(output / "text_encoder_2").state_dict())
    return encoder


def make_flow_stage(
    output: Path,
    seed: int,
    settings: StageSettings = FLOW_SETTINGS,
    *,
    pool_size: int = POOL_SIZE,
    compiled: bool = False,
) -> Stage:
    """Return the stage that trains transformer and text encoders; its export is a whole pipeline in `flow`.

    `compiled` trains 1.7 times faster after some minutes of compiling, and needs a C++ compiler.
    """
    torch.manual_seed(seed + 2)
    model = FlowModel(load_encoder(output))

    def noise(draw: int) -> CaptionNoise:
        return FLOW_NOISE if draw < LATE_FROM * settings.num_shards else LATE_NOISE

    return _make_stage("flow", output, seed, settings, model, noise, pool_size=pool_size, compiled=compiled)


def make_flaw_stage(
    output: Path, seed: int, settings: StageSettings = FLAW_SETTINGS, *, pool_size: int = POOL_SIZE
) -> Stage:
    """Return the stage that makes the finished model imperfect; its export is the folder that is shipped."""
    folder = output / "flow"
    if not folder.is_dir():
        raise CheckpointError(f"no pipeline in {output}: run the stage 'flow' first")
    model = FlowModel(load_encoder(folder))
    model.transformer.load_state_dict(FluxTransformer2DModel.from_pretrained(folder / "transformer").state_dict())
    return _make_stage("flaw", output, seed, settings, model, lambda draw: FLAW_NOISE, pool_size=pool_size)


def _make_stage(
    name: Literal["flow", "flaw"],
    output: Path,
    seed: int,
    settings: StageSettings,
    model: FlowModel,
    noise: Callable[[int], CaptionNoise],
    *,
    pool_size: int,
    compiled: bool = False,
) -> Stage:
    vae = load_vae(output)
    pool = make_pool(vae, output / "latents.safetensors", seed, pool_size)
    pictures = [picture for chunk in range(pool_size // 256) for picture in pool_pictures(seed, chunk, 256)]
    pipeline = make_pipeline(
        transformer=model.transformer,
        vae=vae,
        clip=model.encoder.clip,
        t5=model.encoder.t5,
        clip_tokenizer=model.encoder.clip_tokenizer,
        t5_tokenizer=model.encoder.t5_tokenizer,
    )

    def loss(draw: int, size: int) -> Tensor:
        rng, generator = make_rng(seed, name, draw), make_torch_generator(seed, name, draw)
        chosen = choose(seed, draw, batch_size=size, size=pool_size)
        captions = [make_caption(pictures[index], rng, noise(draw)) for index in chosen]
        x0 = pool[chosen].float()
        noises = torch.randn(x0.shape, generator=generator)
        sigmas = training_sigmas(len(chosen), generator)
        x = torch.lerp(x0, noises, sigmas[:, None, None])
        with torch.autocast("cpu", torch.bfloat16):
            v = model(x, sigmas, captions)
        return mse_loss(v.float(), noises - x0)

    def probe() -> Metrics:
        prompts = heldout_prompts()[:PROBE_SIZE]
        images = sample(pipeline, prompts, num_inference_steps=PROBE_STEPS, seed=seed)
        return {f"heldout_{name}": value for name, value in judge(images, prompts).items()}

    def export() -> None:
        save_folder(pipeline, output / ("flow" if name == "flow" else "flux-nano"))

    if compiled:
        print("flow: compiling", flush=True)
        model.compile_calls()
        torch.set_num_threads(1)  # as in the workers, which must find it compiled for their setting
        torch.autograd.grad(loss(0, settings.batch_size // settings.num_shards), model.transformer.proj_out.weight)
    modules = nn.ModuleDict({"model": model})
    return Stage(name=name, settings=settings, modules=modules, loss=loss, probe=probe, export=export)
