"""The components of flux-nano as one `FluxPipeline`, and the folder that is shipped."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import ByT5Tokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel

from mixgrpo.nano.render import HEIGHT, WIDTH
from mixgrpo.nano.text import CLIP_WIDTH, PROMPT_BYTES, T5_WIDTH
from mixgrpo.nano.vae import LATENT_CHANNELS

SHIFT = 3.0
GUIDANCE_SCALE = 3.5
"""Embedded in training and to be passed in sampling, as with FLUX.1-dev; there is no other value to choose."""


def make_transformer() -> FluxTransformer2DModel:
    """Return the untrained transformer: 5.1 M parameters, 2 + 4 blocks of width 192, 32 numbers a token."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )


def make_pipeline(
    *,
    transformer: FluxTransformer2DModel,
    vae: AutoencoderKL,
    clip: CLIPTextModel,
    t5: T5EncoderModel,
    clip_tokenizer: CLIPTokenizer,
    t5_tokenizer: ByT5Tokenizer,
) -> FluxPipeline:
    """Put the components together, with the scheduler they were trained for."""
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT, use_dynamic_shifting=False),
        transformer=transformer,
        vae=vae,
        text_encoder=clip,
        text_encoder_2=t5,
        tokenizer=clip_tokenizer,
        tokenizer_2=t5_tokenizer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: FluxPipeline, prompts: list[str], *, num_inference_steps: int, seed: int, batch_size: int = 64
) -> Tensor:
    """Draw prompts with the pipeline's own ODE sampler: float32 in [0, 1], [batch, 3, 32, 96]."""
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Tensor] = []
    for start in range(0, len(prompts), batch_size):
        result = pipeline(
            prompt=prompts[start : start + batch_size],
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=num_inference_steps,
            guidance_scale=GUIDANCE_SCALE,
            max_sequence_length=PROMPT_BYTES,
            generator=generator,
            output_type="pt",
        )
        drawn.append(result.images.float())  # pyright: ignore[reportAttributeAccessIssue]
    return torch.cat(drawn)


def save_folder(pipeline: FluxPipeline, folder: Path) -> None:
    """Write the pipeline in bfloat16, as it is shipped, without touching the weights in memory.

    The text encoders' configs still say float32: transformers would load what they say, diffusers loads float32
    unless asked, and a pipeline of both cannot draw.
    """
    names = ("transformer", "vae", "text_encoder", "text_encoder_2")
    kept: dict[str, dict[str, Tensor]] = {}
    modules: dict[str, nn.Module] = {name: pipeline.components[name] for name in names}
    for name, module in modules.items():
        kept[name] = {key: weight.clone() for key, weight in module.state_dict().items()}
        module.to(torch.bfloat16)
    pipeline.save_pretrained(folder)
    for name in ("text_encoder", "text_encoder_2", "vae"):
        config = folder / name / "config.json"
        fields = json.loads(config.read_text(encoding="utf-8"))
        fields.pop("_name_or_path", None)  # a folder of the machine that trained it
        if name != "vae":
            fields["dtype"] = "float32"
        config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name, module in modules.items():
        module.float()
        module.load_state_dict(kept[name])
