"""Random-weight pipelines of the real classes of every family, small enough for a test, saved as a user's folder is.

Those that draw clips are in `clips.py`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from mixgrpo.nano.text import clip_vocabulary
from tests.models import clips
from tests.models.chat import chat_tokenizer, mistral3, qwen3, qwen3_writer, qwen_vl


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


def shake(pipeline: Any) -> Any:
    """Move every weight, since diffusers starts last layers at zero, where nothing could be told apart."""
    torch.manual_seed(3)
    with torch.no_grad():
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                for parameter in part.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save(name: str, folder: Path) -> Path:
    """Make and save the family called `name`."""
    torch.manual_seed(2)
    TINY[name].make().save_pretrained(folder)
    assert not list(folder.rglob("*.bin"))
    return folder


def vae(channels: int, **extra: Any) -> Any:
    config: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 4,
        "scaling_factor": 1.3,
        "shift_factor": 0.1,
    }
    return AutoencoderKL.from_config(config | extra)


def clip(width: int, *, projected: bool = False) -> Any:
    words = clip_vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=words["<|startoftext|>"],
        eos_token_id=words["<|endoftext|>"],
        pad_token_id=words["<|endoftext|>"],
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(clip_vocabulary(), [], model_max_length=77)


def t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=384, d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2, is_encoder_decoder=False
        )
    )


def flux(*, guidance: bool = True, dynamic: bool = True, width: int = 16) -> FluxPipeline:
    return shake(
        FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic),
            transformer=FluxTransformer2DModel(
                patch_size=1,
                in_channels=width,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=max(2, width // 16),
                joint_attention_dim=width,
                pooled_projection_dim=width // 2,
                guidance_embeds=guidance,
                axes_dims_rope=(4, 6, 6),
            ),
            vae=vae(width // 4),
            text_encoder=clip(width // 2),
            text_encoder_2=t5(width),
            tokenizer=clip_tokenizer(),
            tokenizer_2=ByT5Tokenizer(model_max_length=512),
        )
    )


def sd3(*, dual: bool = False, layers: int = 2) -> StableDiffusion3Pipeline:
    return shake(
        StableDiffusion3Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=SD3Transformer2DModel(
                sample_size=32,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=layers,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=32,
                caption_projection_dim=32,
                pooled_projection_dim=24,
                pos_embed_max_size=48,
                dual_attention_layers=tuple(range(layers // 2)) if dual else (),
                qk_norm="rms_norm" if dual else None,
            ),
            vae=vae(4, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=clip(8, projected=True),
            text_encoder_2=clip(16, projected=True),
            text_encoder_3=t5(32),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            tokenizer_3=ByT5Tokenizer(model_max_length=512),
        )
    )


def flux2_parts(*, guidance: bool, layers: int = 1) -> dict[str, Any]:
    """Everything but the text encoder."""
    autoencoder = AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        batch_norm_eps=0.05,  # so large that leaving it out shows
    )
    autoencoder.bn.running_mean.normal_()
    autoencoder.bn.running_var.uniform_(0.5, 2.0)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "transformer": Flux2Transformer2DModel(
            in_channels=16,
            num_layers=layers,
            num_single_layers=2 * layers,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            guidance_embeds=guidance,
            axes_dims_rope=(4, 4, 4, 4),
        ),
        "vae": autoencoder,
        "tokenizer": chat_tokenizer(),
    }


def flux2(layers: int = 1) -> Flux2Pipeline:
    """Its tokenizer would come in a processor of pictures and text, which needs torchvision and is not made use of."""
    return shake(Flux2Pipeline(text_encoder=mistral3(31), **flux2_parts(guidance=True, layers=layers)))


def klein(*, distilled: bool) -> Flux2KleinPipeline:
    return shake(
        Flux2KleinPipeline(text_encoder=qwen3_writer(28), is_distilled=distilled, **flux2_parts(guidance=False))
    )


def qwen_image(layers: int = 2) -> QwenImagePipeline:
    return shake(
        QwenImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
            ),
            transformer=QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=layers,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=8,
                axes_dims_rope=(4, 6, 6),
            ),
            vae=AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 2],
                num_res_blocks=1,
                temperal_downsample=[True],
                latents_mean=[-0.7, 0.3, 1.5, 0.1],
                latents_std=[2.8, 1.4, 0.6, 2.1],
            ),
            text_encoder=qwen_vl(2),
            tokenizer=chat_tokenizer(),
        )
    )


def z_image(layers: int = 1) -> ZImagePipeline:
    return shake(
        ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=ZImageTransformer2DModel(
                in_channels=4,
                dim=32,
                n_layers=layers,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=8,
                axes_dims=[4, 6, 6],
                axes_lens=[256, 64, 64],
            ),
            vae=vae(4),
            text_encoder=qwen3(3),
            tokenizer=chat_tokenizer(),
        )
    )


def clip_family(make: Callable[[], Any], *, frames: int, sides: int = 16, euler: bool = True, **settings: Any) -> Tiny:
    """Return a family that draws clips; settings are fields of `Tiny`, and options that the pipeline calls the same."""
    own = {name: settings.pop(name) for name in ("calls", "unread", "load_lora") if name in settings}
    return Tiny(
        make,
        options={"num_frames": frames, **settings},
        call={"num_frames": frames, **settings},
        sides=sides,
        num_frames=frames,
        drawn=clips.frames,
        schedule=clips.euler if euler else as_shipped,
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
    "wan2.1": clip_family(lambda: shake(clips.wan()), frames=5, calls=2, guidance_scale=4.0, negative_prompt="blurry"),
    "wan2.1-one-frame": clip_family(lambda: shake(clips.wan()), frames=1, guidance_scale=1.0),
    "wan2.2-a14b": clip_family(
        lambda: shake(clips.wan(boundary=0.8)),
        frames=5,
        calls=2,
        unread=("transformer.blocks",),
        load_lora=clips.load_both_loras,
        guidance_scale=4.0,
        guidance_scale_2=2.0,
    ),
    "wan2.2-ti2v-5b": clip_family(
        lambda: shake(clips.wan(patched=True)), frames=5, calls=2, sides=32, guidance_scale=3.0
    ),
    "hunyuanvideo": clip_family(
        lambda: shake(clips.hunyuan_video(clip(8), clip_tokenizer())), frames=5, euler=False, guidance_scale=6.0
    ),
    "hunyuanvideo-one-frame": clip_family(
        lambda: shake(clips.hunyuan_video(clip(8), clip_tokenizer())), frames=1, euler=False, guidance_scale=6.0
    ),
}


def part_config(folder: Path, part: str) -> dict[str, Any]:
    return json.loads((folder / part / "config.json").read_text())
