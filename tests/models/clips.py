"""Random-weight pipelines of the families that draw clips, as `families.py` has those that draw images."""

from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import ByT5Tokenizer, LlamaConfig, LlamaModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

SHIFT = 3.0


def frames(output: Any) -> Tensor:
    """Return clips [B, F, 3, H, W], or images [B, 3, H, W] where they have one frame."""
    return output.frames[:, 0] if output.frames.shape[1] == 1 else output.frames


def euler(pipeline: Any, num_steps: int) -> None:
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


def wan_vae(*, patched: bool = False) -> AutoencoderKLWan:
    """Return the VAE of Wan 2.1 and of 2.2 A14B, or that of TI2V-5B, which works on patches."""
    extra: dict[str, Any] = (
        {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
        if patched
        else {}
    )
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[-0.3, 0.2, 0.5, -0.1],
        latents_std=[1.3, 0.7, 1.1, 0.9],
        **extra,
    )


def wan_transformer(layers: int = 2) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=layers,
        rope_max_seq_len=32,
    )


def umt5(width: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(vocab_size=384, d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2)
    )


def wan(*, boundary: float | None = None, patched: bool = False, layers: int = 2) -> WanPipeline:
    return WanPipeline(
        tokenizer=ByT5Tokenizer(model_max_length=512),
        text_encoder=umt5(16),
        vae=wan_vae(patched=patched),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT, num_train_timesteps=1000
        ),
        transformer=wan_transformer(layers),
        transformer_2=None if boundary is None else wan_transformer(layers),
        boundary_ratio=boundary,
        expand_timesteps=patched,
    )


def llama_tokenizer() -> PreTrainedTokenizerFast:
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


def hunyuan_vae() -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.6,
    )


def hunyuan_video(text_encoder_2: Any, tokenizer_2: Any, layers: int = 1) -> HunyuanVideoPipeline:
    tokenizer = llama_tokenizer()
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return HunyuanVideoPipeline(
        text_encoder=LlamaModel(llama),
        tokenizer=tokenizer,
        transformer=HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=layers,
            num_single_layers=layers,
            num_refiner_layers=1,
            patch_size=2,
            text_embed_dim=16,
            pooled_projection_dim=8,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
    )
