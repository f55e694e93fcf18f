"""Seconds of an iteration, from its calls and how fast a machine was measured to be. No torch.

An iteration's time is a sum over its calls: each has a fixed part and a part per sample, which differ between a forward
pass and a forward and backward pass; then decoding, encoding, the optimiser's step, and as much of scoring as sampling
does not hide. `calibrate` measures these few figures one by one; none of them is fitted to the time of an iteration.
"""

from dataclasses import dataclass, fields, replace

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import AllStepsConfig, GrpoLossConfig
from mixgrpo.cost.calls import Batches, Calls, iteration_calls, kinds_of_iterations


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a call as a straight line over its size."""

    fixed: float
    """Of any call."""
    each: float
    """Of each sample in it."""

    def at(self, size: int) -> float:
        """Return the seconds of one call of `size` samples."""
        return self.fixed + self.each * size

    def of(self, batches: Batches) -> float:
        """Return the seconds of several calls."""
        return sum(count * self.at(size) for size, count in batches.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """What a machine takes for the parts of an iteration."""

    forward: Line
    """The transformer without gradient."""
    update: Line
    """The transformer forwards and backwards, with the loss."""
    decode: Line
    score: Line
    """All rewards of a batch of images, from handing it over to the last score."""
    encode: Line
    """The text encoders, of prompts."""
    step: float
    """One step of the optimiser, with the norm of the gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seconds:
    """Where the time of an iteration goes."""

    sampling: float
    decoding: float
    waiting: float
    """For scores that sampling did not hide."""
    encoding: float
    old: float
    reference: float
    updating: float
    stepping: float

    @property
    def total(self) -> float:
        """All together."""
        return sum(getattr(self, field.name) for field in fields(self))


def predict(config: Config, speeds: Speeds, iteration: int) -> Seconds:
    """Return the seconds of one iteration."""
    calls = iteration_calls(config, iteration)
    return Seconds(
        sampling=sum(speeds.forward.of(chunk.sampling) for chunk in calls.chunks),
        decoding=sum(speeds.decode.of(chunk.decoding) for chunk in calls.chunks),
        waiting=_waiting(calls, speeds),
        encoding=speeds.encode.at(calls.prompts),
        old=speeds.forward.of(calls.old),
        reference=speeds.forward.of(calls.reference),
        updating=speeds.update.of(calls.update),
        stepping=calls.updates * speeds.step,
    )


def predict_mean(config: Config, speeds: Speeds) -> Seconds:
    """Return the seconds of an iteration, averaged over the run."""
    parts = [(predict(config, speeds, iteration), share) for iteration, share in kinds_of_iterations(config)]
    return Seconds(
        **{
            field.name: sum(getattr(seconds, field.name) * share for seconds, share in parts)
            for field in fields(Seconds)
        }
    )


def predict_dancegrpo(config: Config, speeds: Speeds) -> Seconds:
    """Return the seconds of an iteration of DanceGRPO as `dancegrpo_cost` counts it, with the sizes of `config`."""
    rollout = {"kernel": "dance_sde", "noise_spread": 0.0, "share_trunk": False, "tail_ratio": 1.0, "head_ratio": 1.0}
    common = {name: getattr(config.loss, name) for name in ("micro_batch", "updates_per_iteration", "update_split")}
    dancegrpo = config.model_copy(
        update={
            "iterations": 1,
            "window": AllStepsConfig(trained_fraction=0.6),
            "rollout": config.rollout.model_copy(update=rollout),
            "loss": GrpoLossConfig(**common),
            "advantages": config.advantages.model_copy(update={"extremes": 0}),
        }
    )
    return replace(predict(dancegrpo, speeds, 0), old=0.0)


def _waiting(calls: Calls, speeds: Speeds) -> float:
    """Return how long after the last image the last score comes; chunks are scored one after the other."""
    now = scored = 0.0
    for chunk in calls.chunks:
        now += speeds.forward.of(chunk.sampling) + speeds.decode.of(chunk.decoding)
        scored = max(scored, now) + speeds.score.at(chunk.images)
    return scored - now
