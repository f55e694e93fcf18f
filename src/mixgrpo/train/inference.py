"""Drawing one image or clip per prompt, with one model or with two in turn, and scoring them."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mixgrpo.data.prompts import negatives
from mixgrpo.errors import ConfigError
from mixgrpo.flow.multistep import Variant
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan
from mixgrpo.flow.rollout import Kernel, rollout
from mixgrpo.models import FlowModel
from mixgrpo.rewards.scorer import Scorer
from mixgrpo.train.scores import Means, join_tables, summarise


@torch.no_grad()
def draw_batches(
    model: FlowModel,
    prompts: Sequence[str],
    *,
    plan: TrajectoryPlan,
    seed: int,
    batch: int,
    stream: int = 0,
    kernel: Kernel | None = None,
    tail_variant: Variant = "midpoint",
    base: FlowModel | None = None,
    tuned_fraction: float = 1.0,
) -> Iterator[tuple[range, Tensor]]:
    """Draw one image or clip per prompt, `batch` at a time: yield (indices, what `FlowModel.decode` returns).

    Prompt i starts from the same noise whatever the batch, the model or the plan; another `stream` is other noise under
    the same seed. A plan with stochastic steps needs their `kernel`. With `base`, the first
    round(tuned_fraction * steps) steps are `model`'s and the rest `base`'s (hybrid inference, arXiv 2507.21802,
    table 18).

    Raises:
        ConfigError: if a fraction is given without a base model, the two models have different latents, or a prompt has
            a negative prompt that nothing reads.
    """
    if not 0.0 <= tuned_fraction <= 1.0:
        raise ConfigError(f"the tuned fraction must be in [0, 1], got {tuned_fraction}")
    if tuned_fraction < 1.0 and base is None:
        raise ConfigError("a tuned fraction below 1 needs a base model to take the rest of the steps")
    if base is not None and base.latent_shape != model.latent_shape:
        raise ConfigError(f"the models' latents differ: {model.latent_shape} and {base.latent_shape}")
    base_from = plan.sigmas[round(tuned_fraction * plan.num_steps)]
    noise = Noise(seed, stream, model.latent_shape)
    for start in range(0, len(prompts), batch):
        rows = range(start, min(start + batch, len(prompts)))
        texts = [prompts[row] for row in rows]
        led_from = negatives(texts)
        tuned_conditioning = model.encode(texts, led_from)
        base_conditioning = base.encode(texts, led_from) if base is not None else tuned_conditioning

        def velocity(
            x: Tensor, sigma: float, row: Tensor, tuned=tuned_conditioning, untuned=base_conditioning
        ) -> Tensor:
            if base is not None and sigma <= base_from:
                return base.velocity(x, sigma, untuned.take(row))
            return model.velocity(x, sigma, tuned.take(row))

        trajectory = rollout(
            velocity,
            plan,
            noise,
            kernel=kernel,
            prompts=rows,
            group_size=1,
            micro_batch=batch,
            record=(),
            tail_variant=tail_variant,
            device=model.device,
        )
        yield rows, model.decode(trajectory.x0[:, 0])


def score_batches(
    batches: Iterator[tuple[range, Tensor]],
    prompts: Sequence[str],
    scorer: Scorer,
    *,
    on_images: Callable[[range, Tensor], None] | None = None,
) -> Means:
    """Score images while the next ones are drawn, and return the means.

    Raises:
        RewardError: if a reward could not score a single image.
    """
    pending = []
    for rows, images in batches:
        pending.append(scorer.submit(images, [prompts[row] for row in rows]))
        if on_images is not None:
            on_images(rows, images)
    return summarise(join_tables([part.result() for part in pending]))
