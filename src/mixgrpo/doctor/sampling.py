"""Whether our loop draws with the model at hand what the model's own diffusers pipeline draws."""

import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import ModelConfig
from mixgrpo.doctor.finding import Finding
from mixgrpo.doctor.shortage import remedies, shortage
from mixgrpo.errors import MixGRPOError
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan
from mixgrpo.flow.rollout import rollout
from mixgrpo.models import load_model
from mixgrpo.models.pipeline import PipelineModel

EXACT, HALF = 1e-3, 0.15
"""Difference of pixels in [0, 1] that rounding explains at 99 % of them: in float32, and in bfloat16, where the
pipeline also rounds its latents after every step and our loop does not. Not the largest: of a million pixels some lie
on an edge and show the smallest shift whole. Not the mean: where most of a picture is one colour, it hides the rest."""
_SHARE = 0.99


def check_sampling(config: Config, prompt: str, *, num_steps: int = 4) -> Finding:
    """Draw one picture both ways from the same noise, on the schedule of the pipeline.

    Both ways call the same transformer, quantised if the settings say so: that changes what is drawn, not what is
    compared.
    """
    try:
        return _compare(config, prompt, num_steps)
    except MixGRPOError as error:
        return Finding("sampling", "problem", str(error))
    except RuntimeError as error:
        said = shortage(error)
        if said is None:
            raise
        remedy = "; ".join(remedy.flags for remedy in remedies(config) if remedy.helps_drawing)
        return Finding("sampling", "problem", f"the memory ran out while one picture was drawn: {said}", remedy)


def _compare(config: Config, prompt: str, num_steps: int) -> Finding:
    model = load_model(config.model.path, **config.model.arguments(drawing=True))
    assert isinstance(model, PipelineModel)
    solver = type(model.pipeline.scheduler)
    if solver is not FlowMatchEulerDiscreteScheduler and not model.compares_in_euler_steps:
        words = f"not compared: the pipeline's own solver is {solver.__name__}, evaluations take Euler steps"
        return Finding("sampling", "note", words)
    ours, theirs = draw_both_ways(model, prompt, num_steps=num_steps)
    differences = (ours - theirs).abs().flatten()
    nearly_all = differences.kthvalue(math.ceil(_SHARE * len(differences))).values.item()
    words = (
        f"our loop and diffusers' pipeline differ by at most {nearly_all:.1e} at 99 % of the pixels, "
        f"{differences.max().item():.1e} anywhere, {num_steps} steps from one noise"
    )
    if nearly_all <= (EXACT if is_exact(config.model) else HALF):
        return Finding("sampling", "ok", words)
    remedy = "this version of diffusers may draw in another way: use the one in constraints.txt, and tell us"
    return Finding("sampling", "problem", words, remedy)


def is_exact(model: ModelConfig) -> bool:
    """Return whether all is computed in float32; 4-bit weights are unpacked to bfloat16."""
    return model.dtype == "float32" and model.autocast == "off" and model.quantize != "nf4"


@torch.no_grad()
def draw_both_ways(model: PipelineModel, prompt: str, *, num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the picture [3, H, W] or clip [F, 3, H, W] that our loop draws, and that of the model's pipeline."""
    noise = Noise(0, 0, model.latent_shape)
    conditioning = model.encode([prompt])
    trajectory = rollout(
        lambda x, sigma, rows: model.velocity(x, sigma, conditioning.take(rows)),
        TrajectoryPlan(sigmas=model.sigmas(num_steps), window=range(0), tail_order=1),
        noise,
        kernel=None,
        prompts=range(1),
        group_size=1,
        micro_batch=1,
        device=model.device,
    )
    ours = model.decode(trajectory.x0[:, 0])[0]
    theirs = model.pipeline_picture(prompt, noise.initial(0, None)[None], num_steps=num_steps)
    return ours, theirs.reshape(ours.shape)
