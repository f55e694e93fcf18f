"""Small random pipelines of the families that draw clips, as `images.py` has those that draw images."""

from typing import Any, cast

from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from mixgrpo.dry.known import Known
from mixgrpo.dry.parts import CHANNELS, build, byte_tokenizer, clip, clip_tokenizer, scheduler

SHIFT = 3.0
"""Of a Wan whose scheduler is not known."""


def _wan_vae(known: Known) -> Any:
    """Return the VAE of Wan 2.1 and of 2.2 A14B, or that of TI2V-5B, which works on patches."""
    config = known.part("vae")
    sizes = {
        "base_dim": 4,
        "decoder_base_dim": None,
        "z_dim": CHANNELS,
        "dim_mult": [1] * len(config.get("dim_mult", range(4))),
        "num_res_blocks": 1,
        "latents_mean": [-0.3, 0.2, 0.5, -0.1],
        "latents_std": [1.3, 0.7, 1.1, 0.9],
    }
    return build(AutoencoderKLWan, {**config, **sizes})


def _wan_transformer(known: Known) -> Any:
    sizes = {
        "num_layers": known.depth("blocks", "num_layers", small=2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 32,
    }
    return build(WanTransformer3DModel, {**known.part("transformer"), **sizes})


def _umt5(width: int) -> Any:
    return UMT5EncoderModel(
        UMT5Config(vocab_size=384, d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2)
    )


def wan(known: Known) -> WanPipeline:
    """Return Wan 2.1 or 2.2, with a second transformer where a `boundary_ratio` is known."""
    boundary = known.index.get("boundary_ratio")
    return WanPipeline(
        tokenizer=byte_tokenizer(),
        text_encoder=_umt5(16),
        vae=_wan_vae(known),
        scheduler=scheduler(
            known,
            UniPCMultistepScheduler,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=SHIFT,
            num_train_timesteps=1000,
        ),
        transformer=_wan_transformer(known),
        transformer_2=None if boundary is None else _wan_transformer(known),
        boundary_ratio=boundary,
        expand_timesteps=bool(known.index.get("expand_timesteps", False)),
    )


def _llama_tokenizer() -> Any:
    """Return a tokenizer of bytes, to which the template's beginning is the 95 tokens that the pipeline cuts off."""
    text, pieces = DEFAULT_PROMPT_TEMPLATE["template"].partition("{}")[0], DEFAULT_PROMPT_TEMPLATE["crop_start"]
    each = len(text) // pieces  # the first piece is longer; pieces of one length cannot be each other's beginnings
    first = len(text) - each * (pieces - 1)
    beginning = [text[:first], *(text[start : start + each] for start in range(first, len(text), each))]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*dict.fromkeys(beginning), "<|eot_id|>", "<pad>"]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    assert len(tokenizer.encode(text).ids) == pieces
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", padding_side="right")


def hunyuan_video(known: Known) -> HunyuanVideoPipeline:
    """Return HunyuanVideo."""
    tokenizer = _llama_tokenizer()
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    sizes = {
        "num_layers": known.depth("transformer_blocks", "num_layers"),
        "num_single_layers": known.depth("single_transformer_blocks", "num_single_layers"),
        "num_refiner_layers": 1,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "text_embed_dim": 16,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (4, 6, 6),
    }
    vae_sizes = {
        "latent_channels": CHANNELS,
        "block_out_channels": (8,) * len(known.part("vae").get("block_out_channels", range(4))),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    return HunyuanVideoPipeline(
        text_encoder=cast(Any, LlamaModel(llama)),
        tokenizer=tokenizer,
        transformer=build(HunyuanVideoTransformer3DModel, {**known.part("transformer"), **sizes}),
        vae=build(AutoencoderKLHunyuanVideo, {"scaling_factor": 0.6, **known.part("vae"), **vae_sizes}),
        scheduler=scheduler(known, shift=7.0),
        text_encoder_2=clip(8),
        tokenizer_2=clip_tokenizer(),
    )
