"""Floating-point operations of an iteration, from its model calls and the model's shape. No torch."""

from dataclasses import dataclass

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import LoraConfig, ModelConfig
from mixgrpo.shapes import ImageSize, Shape, Training, read_shape
from mixgrpo.train.settings import Cost


def shape_of(model: ModelConfig) -> Shape | None:
    """Return the shape of a config's model; None if it is not known, as `why_no_shape` says."""
    size = ImageSize(
        model.height, model.width, model.max_sequence_length, model.guidance_scale, num_frames=model.num_frames
    )
    return read_shape(model.path, size)


def training_of(model: ModelConfig, lora: LoraConfig, shape: Shape) -> Training:
    """Return what is trained, and how."""
    return Training(
        rank=lora.rank,
        targets=lora.target_modules or shape.lora_targets,
        checkpointing=model.gradient_checkpointing,
        converts=lora.rank > 0 and computes_in_half(model),
    )


def computes_in_half(model: ModelConfig) -> bool:
    """Return whether the transformer computes in bfloat16."""
    return "bfloat16" in (model.dtype, model.autocast)


@dataclass(frozen=True, kw_only=True, slots=True)
class Operations:
    """Operations of one iteration by what they are for."""

    sampling: float
    old: float
    """Forward passes for what the sampling policy predicted."""
    reference: float
    """Forward passes of the starting model."""
    update: float
    """Forward and backward passes, with what checkpointing computes again."""
    decode: float
    encode: float
    """The text encoders, once per prompt."""

    @property
    def forward(self) -> float:
        """Those without a gradient."""
        return self.sampling + self.old + self.reference + self.decode + self.encode

    @property
    def total(self) -> float:
        """All together."""
        return self.forward + self.update


def iteration_operations(config: Config, cost: Cost, shape: Shape) -> Operations:
    """Return the operations of an iteration whose model calls per sample are `cost`. Rewards are not counted."""
    training = training_of(config.model, config.lora, shape)
    samples = config.prompts_per_iteration * config.rollout.group_size
    forward = shape.passes * shape.transformer.forward(training)
    return Operations(
        sampling=samples * cost.sampling * forward,
        old=samples * cost.old * forward,
        reference=samples * cost.reference * shape.passes * shape.transformer.forward(),
        update=samples * cost.update * (forward + shape.passes * shape.transformer.backward(training)),
        decode=samples * shape.decoder.forward(),
        encode=config.prompts_per_iteration * sum(network.forward() for network in shape.text_encoders),
    )
