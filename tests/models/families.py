"""The families' small pipelines (`mixgrpo.dry`) as tests use them: small pictures, and how each pipeline is called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mixgrpo.dry import images as small_images
from mixgrpo.dry.known import Known
from mixgrpo.dry.models import small_pipeline
from mixgrpo.dry.parts import shake

HALF = {"block_out_channels": [8, 16]}
"""A VAE that makes 2 x 2 pixels one cell, for small pictures."""


def same(latents: Tensor, height: int, width: int) -> Tensor:
    return latents


def as_grid(latents: Tensor, height: int, width: int) -> Tensor:
    """Give the tokens of a picture, each of 4 x 4 pixels, back their places: [B, channels, rows, columns]."""
    return latents.transpose(1, 2).unflatten(2, (height // 4, width // 4))


def negative_texts(pipeline: Any, texts: list[str], length: int) -> dict[str, Any]:
    return {"negative_prompt": texts}


def negative_embeddings(pipeline: Any, texts: list[str], length: int) -> dict[str, Any]:
    """FLUX.2 klein's pipeline takes what leads away from only as it is encoded."""
    return {"negative_prompt_embeds": pipeline.encode_prompt(texts, max_sequence_length=length)[0]}


def images(output: Any) -> Tensor:
    return output.images


def as_shipped(pipeline: Any, num_steps: int) -> None:
    del pipeline, num_steps


def load_lora(pipeline: Any, folder: Path) -> None:
    pipeline.load_lora_weights(folder)


@dataclass(frozen=True)
class Tiny:
    """A family's small model."""

    make: Callable[[], Any]
    """Makes the pipeline."""
    size: tuple[int, int] = (32, 64)
    """Height and width."""
    options: dict[str, Any] = field(default_factory=dict)
    """For `load_model`, beside the size."""
    call: dict[str, Any] = field(default_factory=dict)
    """The same for the pipeline's call, but for the negative prompt."""
    negative: Callable[[Any, list[str], int], dict[str, Any]] = negative_texts
    """Turns a negative prompt for every picture, of at most so many tokens, into arguments of the pipeline's call."""
    frames: bool = False
    """Whether the VAE is one of videos, which takes pictures as one frame: [B, 3, 1, H, W]."""
    calls: int = 1
    """How often the transformer is called for a prediction."""
    unread: tuple[str, ...] = ()
    """Layers whose output the transformer throws away, so that no gradient reaches them."""
    latents: Callable[[Tensor, int, int], Tensor] = same
    """Turns our latents of pictures of so many pixels into those that the pipeline's call takes."""
    sides: int = 4
    """What height and width must be multiples of."""
    num_frames: int = 1
    """Frames that it draws."""
    drawn: Callable[[Any], Tensor] = images
    """Takes the images or clips out of what the pipeline's call returns."""
    schedule: Callable[[Any, int], None] = as_shipped
    """Gives the pipeline the Euler scheduler that takes the steps of its own, whose times it does not change."""
    load_lora: Callable[[Any, Path], None] = load_lora
    """Loads what `save_lora` wrote into the pipeline."""


def save(name: str, folder: Path) -> Path:
    """Make and save the family called `name`."""
    TINY[name].make().save_pretrained(folder)
    assert not list(folder.rglob("*.bin"))
    return folder


def make(
    pipeline: str, index: Mapping[str, Any] | None = None, *, least: Mapping[str, int] | None = None, **parts: Any
) -> Any:
    """Make a pipeline from some numbers of its config files, with at least so many blocks of some kinds."""
    return small_pipeline(Known(pipeline, {"vae": HALF, **parts}, index or {}, least or {}))


def flux(*, guidance: bool = True, dynamic: bool = True, width: int = 16) -> Any:
    parts = {"transformer": {"guidance_embeds": guidance}, "scheduler": {"use_dynamic_shifting": dynamic}, "vae": HALF}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return shake(small_images.flux(Known("FluxPipeline", parts), width=width))


def sd3(*, dual: bool = False, layers: int = 2) -> Any:
    extra = {"dual_attention_layers": list(range(layers // 2)), "qk_norm": "rms_norm"} if dual else {}
    return make("StableDiffusion3Pipeline", least={"transformer_blocks": layers}, transformer=extra)


def flux2(layers: int = 1) -> Any:
    least = {"transformer_blocks": layers, "single_transformer_blocks": 2 * layers}
    return make("Flux2Pipeline", least=least, vae=WIDE_EPSILON)


def klein(*, distilled: bool) -> Any:
    return make("Flux2KleinPipeline", {"is_distilled": distilled}, vae=WIDE_EPSILON)


def qwen_image(layers: int = 2) -> Any:
    vae = {"temperal_downsample": [True]}
    return small_pipeline(Known("QwenImagePipeline", {"vae": vae}, least={"transformer_blocks": layers}))


def z_image(layers: int = 1) -> Any:
    return make("ZImagePipeline", least={"layers": layers})


def wan(*, boundary: float | None = None, patched: bool = False, layers: int = 2) -> Any:
    vae = (
        {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
        if patched
        else {}
    )
    index = {"boundary_ratio": boundary, "expand_timesteps": patched}
    return make("WanPipeline", index, least={"blocks": layers}, vae=vae)


def hunyuan_video(layers: int = 1) -> Any:
    least = {"transformer_blocks": layers, "single_transformer_blocks": layers}
    return make("HunyuanVideoPipeline", least=least, vae={})


WIDE_EPSILON = {**HALF, "batch_norm_eps": 0.05}
"""For FLUX.2, so large that leaving it out shows."""


def clip_frames(output: Any) -> Tensor:
    """Return clips [B, F, 3, H, W], or images [B, 3, H, W] where they have one frame."""
    return output.frames[:, 0] if output.frames.shape[1] == 1 else output.frames


def euler_steps(pipeline: Any, num_steps: int) -> None:
    """Take the steps of the shipped UniPC, those of its own arithmetic, in Euler steps with unrounded times."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=pipeline.scheduler.config.flow_shift)
    times = np.linspace(1.0, 1.0 / 1000.0, num_steps + 1)[:-1]

    def set_timesteps(self: Any, num_inference_steps: int, device: Any = None) -> None:
        assert num_inference_steps == num_steps
        FlowMatchEulerDiscreteScheduler.set_timesteps(self, sigmas=times.tolist(), device=device)

    pipeline.scheduler = scheduler
    scheduler.set_timesteps = MethodType(set_timesteps, scheduler)


def load_both_loras(pipeline: Any, folder: Path) -> None:
    pipeline.load_lora_weights(folder)
    file = "transformer_2/pytorch_lora_weights.safetensors"
    pipeline.load_lora_weights(folder, weight_name=file, load_into_transformer_2=True)


def clip_family(make: Callable[[], Any], *, frames: int, sides: int = 16, euler: bool = True, **settings: Any) -> Tiny:
    """Return a family that draws clips; settings are fields of `Tiny`, and options that the pipeline calls the same."""
    own = {name: settings.pop(name) for name in ("calls", "unread", "load_lora") if name in settings}
    return Tiny(
        make,
        options={"num_frames": frames, **settings},
        call={"num_frames": frames, **settings},
        sides=sides,
        num_frames=frames,
        drawn=clip_frames,
        schedule=euler_steps if euler else as_shipped,
        **own,
    )


_SD3_UNREAD = ("transformer_blocks.1.attn.add_q_proj",)
_QWEN_UNREAD = tuple(f"transformer_blocks.1.{name}" for name in ("attn.add_q_proj", "attn.to_add_out", "txt_mlp"))
"""The last block drops its text."""

TINY: dict[str, Tiny] = {
    "flux-dev": Tiny(flux, options={"guidance_scale": 3.5}, call={"guidance_scale": 3.5}),
    "flux-schnell": Tiny(lambda: flux(guidance=False, dynamic=False)),
    "sd3": Tiny(sd3, calls=2, unread=_SD3_UNREAD, options={"guidance_scale": 7.0}, call={"guidance_scale": 7.0}),
    "sd3.5-medium": Tiny(
        lambda: sd3(dual=True),
        calls=2,
        unread=_SD3_UNREAD,
        options={"guidance_scale": 4.5, "negative_prompt": "blurry"},
        call={"guidance_scale": 4.5},
    ),
    "sd3-unguided": Tiny(sd3, unread=_SD3_UNREAD, options={"guidance_scale": 1.0}, call={"guidance_scale": 1.0}),
    "flux2-dev": Tiny(flux2, latents=as_grid, options={"guidance_scale": 4.0}, call={"guidance_scale": 4.0}),
    "flux2-klein": Tiny(lambda: klein(distilled=True), latents=as_grid),
    "flux2-klein-base": Tiny(
        lambda: klein(distilled=False),
        calls=2,
        latents=as_grid,
        options={"guidance_scale": 4.0, "negative_prompt": "blurry"},
        call={"guidance_scale": 4.0},
        negative=negative_embeddings,
    ),
    "qwen-image": Tiny(
        qwen_image,
        calls=2,
        frames=True,
        unread=_QWEN_UNREAD,
        options={"guidance_scale": 4.0, "negative_prompt": "blurry"},
        call={"true_cfg_scale": 4.0},
    ),
    "qwen-image-unguided": Tiny(
        qwen_image, frames=True, unread=_QWEN_UNREAD, options={"guidance_scale": 1.0}, call={"true_cfg_scale": 1.0}
    ),
    # 40 x 48 pixels are 120 tokens, which the transformer makes 128.
    "z-image-turbo": Tiny(z_image, size=(40, 48), options={"guidance_scale": 0.0}, call={"guidance_scale": 0.0}),
    "z-image": Tiny(
        z_image,
        calls=2,
        size=(40, 48),
        options={"guidance_scale": 0.8, "negative_prompt": "blurry"},  # as strong as 1.8 elsewhere
        call={"guidance_scale": 0.8},
    ),
    "wan2.1": clip_family(wan, frames=5, calls=2, guidance_scale=4.0, negative_prompt="blurry"),
    "wan2.1-one-frame": clip_family(wan, frames=1, guidance_scale=1.0),
    "wan2.2-a14b": clip_family(
        lambda: wan(boundary=0.8),
        frames=5,
        calls=2,
        unread=("transformer.blocks",),
        load_lora=load_both_loras,
        guidance_scale=4.0,
        guidance_scale_2=2.0,
    ),
    "wan2.2-ti2v-5b": clip_family(lambda: wan(patched=True), frames=5, calls=2, sides=32, guidance_scale=3.0),
    "hunyuanvideo": clip_family(hunyuan_video, frames=5, euler=False, guidance_scale=6.0),
    "hunyuanvideo-one-frame": clip_family(hunyuan_video, frames=1, euler=False, guidance_scale=6.0),
}
