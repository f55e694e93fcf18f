"""Small random pipelines of the families that draw images; those that draw clips are in `clips.py`.

Of what is known of a model, everything is kept but sizes.
"""

from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
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

from mixgrpo.dry.chat import chat_tokenizer, mistral3, qwen3, qwen3_writer, qwen_vl
from mixgrpo.dry.known import Known
from mixgrpo.dry.parts import CHANNELS, build, byte_tokenizer, clip, clip_tokenizer, image_vae, scheduler, t5

_VAE: dict[str, Any] = {"scaling_factor": 1.3, "shift_factor": 0.1}
"""Of an `AutoencoderKL` of which nothing is known."""

_DEPTHS = {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"}
"""Lists of blocks in transformers -> the number of their config that says how many there are."""


def _depths(known: Known, *, two: str = "") -> dict[str, int]:
    """Return the numbers of blocks of a transformer with both kinds, one of each, but of `two` two."""
    return {key: known.depth(blocks, key, small=1 + (key == two)) for blocks, key in _DEPTHS.items()}


def flux(known: Known, *, width: int = 4 * CHANNELS) -> FluxPipeline:
    """Return FLUX.1: dev's kind where nothing is known."""
    sizes = {
        **_depths(known),
        "in_channels": width,
        "out_channels": None,
        "attention_head_dim": 16,
        "num_attention_heads": max(2, width // 16),
        "joint_attention_dim": width,
        "pooled_projection_dim": width // 2,
        "axes_dims_rope": (4, 6, 6),
    }
    config: Any = {"guidance_embeds": True, **known.part("transformer"), **sizes}
    return FluxPipeline(
        scheduler=scheduler(known, shift=3.0, use_dynamic_shifting=config["guidance_embeds"]),
        transformer=build(FluxTransformer2DModel, config),
        vae=image_vae(known, channels=width // 4, **_VAE),
        text_encoder=clip(width // 2),
        text_encoder_2=t5(width),
        tokenizer=clip_tokenizer(),
        tokenizer_2=byte_tokenizer(),
    )


def sd3(known: Known) -> StableDiffusion3Pipeline:
    """Return Stable Diffusion 3 or 3.5; of dual attention layers it keeps one, if the model has any."""
    config = known.part("transformer")
    layers = known.depth("transformer_blocks", "num_layers", small=2)
    dual = tuple(layer for layer in config.get("dual_attention_layers") or () if layer < layers - 1)
    sizes = {
        "sample_size": 32,
        "pos_embed_max_size": 48,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_layers": layers,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 24,
        "dual_attention_layers": dual,
    }
    return StableDiffusion3Pipeline(
        scheduler=scheduler(known, shift=3.0),
        transformer=build(SD3Transformer2DModel, {**config, **sizes}),
        vae=image_vae(known, **{**_VAE, "use_quant_conv": False, "use_post_quant_conv": False}),
        text_encoder=clip(8, projected=True),
        text_encoder_2=clip(16, projected=True),
        text_encoder_3=t5(32),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=byte_tokenizer(),
    )


def _flux2_parts(known: Known, *, guidance: bool) -> dict[str, Any]:
    """Return everything of a FLUX.2 but the text encoder."""
    sizes = {
        **_depths(known, two="num_single_layers"),
        "in_channels": 4 * CHANNELS,
        "out_channels": None,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "axes_dims_rope": (4, 4, 4, 4),
    }
    vae = image_vae(known, AutoencoderKLFlux2)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return {
        "scheduler": scheduler(known, shift=3.0, use_dynamic_shifting=True),
        "transformer": build(
            Flux2Transformer2DModel, {"guidance_embeds": guidance, **known.part("transformer"), **sizes}
        ),
        "vae": vae,
        "tokenizer": chat_tokenizer(),
    }


def flux2(known: Known) -> Flux2Pipeline:
    """Return FLUX.2 dev, with a tokenizer in place of a processor of pictures and text, which needs torchvision."""
    return Flux2Pipeline(text_encoder=mistral3(31), **_flux2_parts(known, guidance=True))


def klein(known: Known) -> Flux2KleinPipeline:
    """Return FLUX.2 klein, distilled or not."""
    distilled = bool(known.index.get("is_distilled", True))
    return Flux2KleinPipeline(
        text_encoder=qwen3_writer(28), is_distilled=distilled, **_flux2_parts(known, guidance=False)
    )


def qwen_image(known: Known) -> QwenImagePipeline:
    """Return Qwen-Image."""
    vae = known.part("vae")
    downs = vae.get("temperal_downsample", [False, True, True])
    sizes = {
        "num_layers": known.depth("transformer_blocks", "num_layers", small=2),
        "in_channels": 4 * CHANNELS,
        "out_channels": CHANNELS,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "axes_dims_rope": (4, 6, 6),
    }
    vae_sizes = {
        "base_dim": 8,
        "z_dim": CHANNELS,
        "dim_mult": [*([1] * len(downs)), 2],
        "num_res_blocks": 1,
        "temperal_downsample": downs,
        "latents_mean": [-0.7, 0.3, 1.5, 0.1],
        "latents_std": [2.8, 1.4, 0.6, 2.1],
    }
    return QwenImagePipeline(
        scheduler=scheduler(
            known,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        transformer=build(QwenImageTransformer2DModel, {**known.part("transformer"), **sizes}),
        vae=build(AutoencoderKLQwenImage, {**vae, **vae_sizes}),
        text_encoder=qwen_vl(2),
        tokenizer=chat_tokenizer(),
    )


def z_image(known: Known) -> ZImagePipeline:
    """Return Z-Image."""
    refiners = max(known.depth(name, "n_refiner_layers") for name in ("noise_refiner", "context_refiner"))
    sizes = {
        "n_layers": known.depth("layers", "n_layers"),
        "n_refiner_layers": refiners,
        "in_channels": CHANNELS,
        "dim": 32,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 8,
        "axes_dims": [4, 6, 6],
    }
    return ZImagePipeline(
        scheduler=scheduler(known, shift=3.0),
        transformer=build(ZImageTransformer2DModel, {**known.part("transformer"), **sizes}),
        vae=image_vae(known, **_VAE),
        text_encoder=qwen3(3),
        tokenizer=chat_tokenizer(),
    )
