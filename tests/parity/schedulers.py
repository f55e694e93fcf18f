"""diffusers' DPM-Solver on a schedule given by hand."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler


def diffusers_solver(sigmas: Sequence[float], **config: Any) -> DPMSolverMultistepScheduler:
    """Return a flow-matching scheduler that steps through exactly `sigmas`, its last step of first order."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, lower_order_final=False, **config
    )
    num_steps = len(sigmas) - 1
    scheduler.num_inference_steps = num_steps
    scheduler.timesteps = torch.arange(num_steps)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.set_begin_index(0)
    return scheduler
