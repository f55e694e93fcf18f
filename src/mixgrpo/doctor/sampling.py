"""Whether our loop draws with the model at hand what the model's own diffusers pipeline draws."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from mixgrpo.config.schema import Config
from mixgrpo.doctor.finding import Finding
from mixgrpo.errors import MixGRPOError
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan
from mixgrpo.flow.rollout import rollout
from mixgrpo.models import load_model
from mixgrpo.models.pipeline import PipelineModel

_EXACT, _HALF = 1e-3, 0.1
"""Largest difference of a pixel in [0, 1] that rounding explains: in float32, and in bfloat16, where the solver differs
in type too."""


def check_sampling(config: Config, prompt: str, *, num_steps: int = 4) -> Finding:
    """Draw one picture both ways from the same noise, on the schedule of the pipeline."""
    try:
        model = load_model(config.model.path, **config.model.arguments(drawing=True))
    except MixGRPOError as error:
        return Finding("sampling", "problem", str(error))
    assert isinstance(model, PipelineModel)
    solver = type(model.pipeline.scheduler)
    if solver is not FlowMatchEulerDiscreteScheduler and not model.compares_in_euler_steps:
        words = f"not compared: the pipeline's own solver is {solver.__name__}, evaluations take Euler steps"
        return Finding("sampling", "note", words)
    ours, theirs = draw_both_ways(model, prompt, num_steps=num_steps)
    difference = (ours - theirs).abs().max().item()
    exact = config.model.dtype == "float32" and config.model.autocast == "off"
    words = f"our loop and diffusers' pipeline differ by {difference:.1e} at most, {num_steps} steps from one noise"
    if difference <= (_EXACT if exact else _HALF):
        return Finding("sampling", "ok", words)
    remedy = "this version of diffusers may draw in another way: use the one in constraints.txt, and tell us"
    return Finding("sampling", "problem", words, remedy)


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
