"""Editing pictures: from pixels and prompts to latents, through `flow.edit`, and back to pixels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixgrpo.flow.edit import TRUE_REVERSE_ETA, Method, Velocity, edit
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.sigmas import sigmas_from
from mixgrpo.models import Conditioning, FlowModel

_UP, _DOWN = 0, 1  # in place of the sample in the keys of the noise: one stream for each way


def num_calls(method: Method, num_steps: int) -> int:
    """Return the model calls of an edit: one a step, and one more where the source prompt is solved or retraced."""
    return num_steps if method == "sde" else 2 * num_steps


@torch.no_grad()
def edit_images(
    model: FlowModel,
    images: Tensor,
    prompts: Sequence[str],
    *,
    targets: Sequence[str],
    masks: Tensor | None = None,
    method: Method,
    strength: float,
    num_steps: int,
    shift: float,
    seed: int,
    eta: float = TRUE_REVERSE_ETA,
    on_call: Callable[[], None] = lambda: None,
) -> Tensor:
    """Edit images [B, 3, H, W] in [0, 1] of `prompts` to those of `targets`; return such images, on the CPU.

    `strength` is the sigma, in (0, 1), that they are taken up to; the way down has `num_steps` steps. Pixels where
    `masks`, bool [B, 1, H, W], is False come out as they went in. So does with "cycle-sde" what the edit left alone:
    there the VAE's own error is part of what is carried over. `on_call` hears of every model call.

    Raises:
        ValueError: if a value is out of range, or the images are not of the model's size.
    """
    x0 = model.encode_image(images)
    noise = Noise(seed, 0, model.latent_shape)

    def velocity(conditioning: Conditioning) -> Velocity:
        def predict(x: Tensor, sigma: float) -> Tensor:
            v = model.velocity(x, sigma, conditioning)
            on_call()
            return v

        return predict

    def draw(sample: int) -> Callable[[int], Tensor]:
        return lambda step: torch.stack([noise.step(row, sample, step) for row in range(len(x0))]).to(x0.device)

    edited = edit(
        x0,
        sigmas_from(strength, num_steps, shift),
        method=method,
        source=velocity(model.encode(prompts)),
        target=velocity(model.encode(targets)),
        noise_up=draw(_UP),
        noise_down=draw(_DOWN),
        eta=eta,
        mask=None if masks is None else model.encode_mask(masks),
    )
    result = model.decode(edited)
    if method == "cycle-sde":
        result = _carry_error_over(images, model.decode(x0), result)
    return result if masks is None else torch.where(masks, result, images)


def _carry_error_over(images: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Add to `after` what the VAE lost of `images` in `before`; the less, the more a pixel was changed.

    Unchanged pixels are those of `images`, bit for bit. At full weight everywhere, the edges of what was there before
    would show as ghosts in what is there now.
    """
    change = after - before
    lost = images - before
    return (images + change - change.abs().amax(1, keepdim=True) * lost).clamp(0.0, 1.0)
