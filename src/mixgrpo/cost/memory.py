"""Bytes that a run holds on its device: what stays, and what comes and goes in the phases of an iteration. No torch.

Several ranks are reckoned as FSDP shares them out: weights, gradients, optimiser state and every copy of the weights
in equal parts; text encoders and VAE whole on every rank. What rewards, a device's driver and its allocator take is not
counted.
"""

from dataclasses import dataclass

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import ModelConfig, NftLossConfig
from mixgrpo.cost.calls import iteration_calls, kinds_of_iterations
from mixgrpo.cost.operations import computes_in_half, training_of
from mixgrpo.rl.window import trained_steps
from mixgrpo.shapes import Shape, Training
from mixgrpo.train.settings import make_window

_WIDE = 4
_HALF = 2
_QUANTISED = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
"""Bytes of a weight of a linear layer; nf4 has a scale in float32 for every 64, int8 one for every output."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what they are for."""

    resident: dict[str, int]
    """What stays through an iteration."""
    phases: dict[str, int]
    """What a phase needs besides; one phase follows another."""

    @property
    def peak(self) -> int:
        """What stays and the hungriest phase."""
        return sum(self.resident.values()) + max(self.phases.values())


def estimate_memory(config: Config, shape: Shape, *, ranks: int = 1, cuda: bool = True) -> Memory:
    """Return the bytes on one of `ranks` devices, the prompts shared out among them."""
    config = config_of_rank(config, ranks)
    model, training = config.model, training_of(config.model, config.lora, shape)
    sampled, updated = _largest_calls(config)
    encoders, vae = _beside_the_transformer(config, shape)
    starting = _starting_model(config, shape) // ranks
    resident = {
        **_weights(config, shape, training, ranks=ranks),
        **({"starting model": starting} if starting and not model.offload else {}),
        **({} if model.offload else {"text encoders and VAE": encoders + vae}),
        "trajectories": _trajectories(config, shape),
    }
    trained = shape.trained_parameters(training)
    converted = _converted(config, shape, ranks)
    computing = _HALF if computes_in_half(model) else _WIDE
    decoded = 1 if model.vae_decoding != "whole" else sampled
    phases = {
        "sampling": sampled * shape.forward_peak * computing + converted,
        "decoding": decoded * shape.decoder_peak * _vae_bytes(shape, model.dtype) + (vae if model.offload else 0),
        "updating": _update(model, shape, training, converted=converted, samples=updated),
        # on a GPU, AdamW works on all parameters at once and holds as much again for a moment
        "optimiser step": trained * _WIDE // ranks if cuda else 0,
    }
    if model.offload:
        phases["encoding"] = encoders
    if starting and model.offload:  # the trained weights, and what is converted of them, are idle meanwhile
        phases["starting model"] = updated * shape.forward_peak * computing + starting
    return Memory(resident, phases)


def config_of_rank(config: Config, ranks: int) -> Config:
    """Return the config of the busiest of `ranks` ranks that share out the prompts."""
    return config.model_copy(update={"prompts_per_iteration": -(-config.prompts_per_iteration // ranks)})


def _largest_calls(config: Config) -> tuple[int, int]:
    """Return the most samples of a sampling call and of a forward and backward call."""
    calls = [iteration_calls(config, iteration) for iteration, _ in kinds_of_iterations(config)]
    return (
        max(size for each in calls for chunk in each.chunks for size in (*chunk.sampling, *chunk.decoding)),
        max(size for each in calls for size in each.update),
    )


def _weights(config: Config, shape: Shape, training: Training, *, ranks: int) -> dict[str, int]:
    """Return the bytes of everything that is as large as the weights."""
    trained = shape.trained_parameters(training)
    full = not training.rank
    weights = trained * _WIDE + (0 if full else _frozen_weights(config.model, shape))
    copies = {
        "weights": weights,
        "gradients": trained * _WIDE,
        "optimiser": 2 * trained * _WIDE,
        "average": trained * _WIDE if config.optim.ema_decay else 0,
        "sampling policy": trained * _WIDE if _lags(config) else 0,
    }
    return {name: size // ranks for name, size in copies.items() if size}


def _starting_model(config: Config, shape: Shape) -> int:
    """Return the bytes of the copy that full fine-tuning keeps where it is held to the model it started from."""
    return shape.parameters * _bytes(config.model.dtype) if config.loss.kl_weight and not config.lora.rank else 0


def _frozen_weights(model: ModelConfig, shape: Shape) -> int:
    """Return the bytes of the transformers' weights beside their adapters."""
    width = _bytes(model.dtype)
    matrices = sum(network.matrix_parameters for network in shape.transformers)
    return int(matrices * _QUANTISED.get(model.quantize, width)) + (shape.parameters - matrices) * width


def _beside_the_transformer(config: Config, shape: Shape) -> tuple[int, int]:
    """Return the bytes of the text encoders, which a run with a prompt cache does not hold, and of the VAE."""
    dtype = config.model.dtype
    encoders = 0 if config.model.prompt_cache else sum(network.parameters for network in shape.text_encoders)
    vae = shape.decoder.parameters + shape.other_parameters
    return encoders * _bytes(dtype), vae * _vae_bytes(shape, dtype)


def _vae_bytes(shape: Shape, dtype: str) -> int:
    return _WIDE if shape.vae_in_float32 else _bytes(dtype)


def _lags(config: Config) -> bool:
    return isinstance(config.loss, NftLossConfig) and config.loss.old_decay_rate > 0.0


def _trajectories(config: Config, shape: Shape) -> int:
    """Return the bytes of what is kept between sampling and update.

    These are the prompts and, for the trained steps of every sample, both ends and what other weights than the trained
    ones predicted there.
    """
    window, prompts = make_window(config), config.prompts_per_iteration
    latents = 0
    for iteration, _ in kinds_of_iterations(config):
        calls = iteration_calls(config, iteration)
        ends = 2 * len(trained_steps(window, iteration)) * prompts * config.rollout.group_size
        predicted = sum(size * count for batches in (calls.old, calls.reference) for size, count in batches.items())
        latents = max(latents, ends + predicted)
    return latents * shape.latent_numbers * _WIDE + prompts * shape.conditioning_numbers * _bytes(config.model.dtype)


def _converted(config: Config, shape: Shape, ranks: int) -> int:
    """Return the bytes of weights in the type of computation.

    One process: autocast converts float32 weights and holds on to the results until the forward pass ends. Several
    ranks: FSDP gathers block after block, one ahead, in the type of computation.
    """
    network = shape.transformer
    if ranks > 1:
        return 2 * network.largest_block * (_HALF if computes_in_half(config.model) else _WIDE)
    wide = not config.lora.rank or config.model.dtype == "float32"
    if config.lora.rank and config.model.quantize != "off":  # one matrix after another is unpacked
        return network.largest_matrix * (_HALF if computes_in_half(config.model) else _WIDE)
    return network.matrix_parameters * _HALF if config.model.autocast != "off" and wide else 0


def _update(model: ModelConfig, shape: Shape, training: Training, *, converted: int, samples: int) -> int:
    """Return the bytes of one forward and backward pass."""
    half = computes_in_half(model)
    plain = _HALF if half else _WIDE
    adapters = _HALF if model.autocast != "off" else _WIDE
    kept = shape.transformer.keeps(training, passes=shape.passes).bytes(plain=plain, wide=_WIDE, adapters=adapters)
    kept += shape.backward_peak * plain
    if not training.checkpointing:
        return samples * kept + converted
    # the converted weights are gone when the backward pass comes to the blocks
    boundaries = shape.passes * shape.transformer.boundaries * plain
    return max(samples * kept, samples * boundaries + converted)


def _bytes(dtype: str) -> int:
    return _HALF if dtype == "bfloat16" else _WIDE
