"""The settings of a run: frozen pydantic models that know every key, every range and every rule between them.

An unknown key is an error, nothing is rewritten silently, and every rule that can be checked without loading a model
is checked here.
"""

from typing import Self

from pydantic import Field, model_validator

from mixgrpo.config.sections import (
    AdvantagesConfig,
    AllStepsConfig,
    CheckpointConfig,
    EvalConfig,
    FrozenWindowConfig,
    GrpoLossConfig,
    GuardConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    NeighborLossConfig,
    OptimConfig,
    Positive,
    PromptsConfig,
    RewardConfig,
    RolloutConfig,
    Section,
    Seed,
    WindowConfig,
)


def _either(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} or {high}"


class Config(Section):
    """Everything that decides what a run does."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name of the run, first part of its folder's name."""
    description: str = ""
    """One line that says what this is, shown when the run starts and in its report."""
    seed: Seed = 0
    """Seed of everything random: prompts, noise, windows."""
    iterations: Positive
    """Rollout-and-update rounds."""
    prompts_per_iteration: Positive
    """Prompts per iteration P, over all ranks."""
    model: ModelConfig
    prompts: PromptsConfig
    rollout: RolloutConfig
    window: WindowConfig
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    advantages: AdvantagesConfig = AdvantagesConfig()
    loss: LossConfig
    optim: OptimConfig
    lora: LoraConfig = LoraConfig()
    eval: EvalConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        steps, window = self.rollout.num_steps, self.window
        if isinstance(window, AllStepsConfig):
            if window.num_trained > steps - 1:
                raise ValueError(
                    f"window.num_trained ({window.num_trained}) must be at most {steps - 1}: with rollout.num_steps = "
                    f"{steps} that many steps can be trained, because the last one lands on sigma 0"
                )
            return self
        start = window.start if isinstance(window, FrozenWindowConfig) else 0
        if start + window.size > steps - 1:
            where = f" from window.start ({start})" if start else ""
            raise ValueError(
                f"window.size ({window.size}){where} does not fit: with rollout.num_steps = {steps} a window "
                f"may hold steps 0 to {steps - 2}, because the last step is never stochastic. "
                f"Use a size of at most {max(1, steps - 1 - start)}, or more steps"
            )
        return self

    @model_validator(mode="after")
    def _updates_divide(self) -> Self:
        updates, split = self.loss.updates_per_iteration, self.loss.update_split
        name, whole = (
            ("rollout.group_size", self.rollout.group_size)
            if split == "samples"
            else ("prompts_per_iteration", self.prompts_per_iteration)
        )
        if whole % updates:
            below = max(n for n in range(1, updates + 1) if whole % n == 0)
            above = next((n for n in range(updates, whole + 1) if whole % n == 0), whole)
            fewer, more = whole - whole % updates or updates, whole + updates - whole % updates
            raise ValueError(
                f"{name} ({whole}) does not divide into loss.updates_per_iteration ({updates}) equal shares "
                f"of {split}: {whole} / {updates} = {whole / updates:.2f}. "
                f"Nearest that do: {_either(below, above)} updates, or {name} = {_either(fewer, more)}"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        updates = self.iterations * self.loss.updates_per_iteration
        if self.optim.warmup >= updates:
            raise ValueError(
                f"optim.warmup ({self.optim.warmup}) must be below the number of updates of the run, iterations x "
                f"loss.updates_per_iteration = {updates}, or the learning rate is never reached"
            )
        return self

    @model_validator(mode="after")
    def _rewards_make_sense(self) -> Self:
        names = [reward.name for reward in self.rewards]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rewards: the name {twice[0]!r} is used twice; every reward needs a name of its own")
        if trained := [reward for reward in self.rewards if reward.evaluation_only and reward.weight > 0]:
            raise ValueError(
                f"rewards: {trained[0].name!r} is evaluation_only, so training never asks it, but its weight is "
                f"{trained[0].weight:g}. Set its weight to 0, or evaluation_only to false"
            )
        if not any(reward.weight > 0 for reward in self.rewards):
            raise ValueError("rewards: every weight is 0, so there is nothing to train on; give one a weight above 0")
        if self.eval.best and self.eval.best not in names:
            raise ValueError(f"eval.best is {self.eval.best!r}, which is no reward of this run; allowed: {names}")
        if any(reward.evaluation_only for reward in self.rewards if reward.name == self.eval.best):
            raise ValueError(
                f"eval.best is {self.eval.best!r}, which is evaluation_only. A judge that picks the checkpoint is no "
                "independent one any more: what it says of the best would be too kind. Name another reward, or set "
                "its evaluation_only to false"
            )
        return self

    @model_validator(mode="after")
    def _tail_formula_exists(self) -> Self:
        if self.rollout.tail_variant == "corrected" and self.rollout.tail_order != 3:
            raise ValueError(
                f"rollout.tail_variant 'corrected' is a third-order formula, but rollout.tail_order is "
                f"{self.rollout.tail_order}; set rollout.tail_order = 3, or use 'midpoint' or 'heun'"
            )
        return self

    @model_validator(mode="after")
    def _eta_suits_kernel(self) -> Self:
        if self.rollout.kernel == "cps" and self.rollout.eta > 1.0:
            raise ValueError(
                f"rollout.eta is {self.rollout.eta:g}, but for rollout.kernel 'cps' it is the share of noise "
                "that is drawn anew (an angle, in quarter turns); allowed: above 0 and at most 1"
            )
        return self

    @model_validator(mode="after")
    def _types_fit(self) -> Self:
        if self.model.dtype == "bfloat16" and self.lora.rank == 0 and self.model.autocast == "off":
            raise ValueError(
                "model.dtype 'bfloat16' with full fine-tuning (lora.rank 0) needs model.autocast 'bfloat16': "
                "the trained weights are float32 and must be computed with in the type of the rest"
            )
        return self

    @model_validator(mode="after")
    def _quantised_weights_are_not_trained(self) -> Self:
        if self.model.quantize != "off" and self.lora.rank == 0:
            raise ValueError(
                f"model.quantize = {self.model.quantize!r} keeps weights that cannot be trained; train adapters beside "
                "them (lora.rank 32), or leave it off"
            )
        return self

    @model_validator(mode="after")
    def _flash_has_something_to_shorten(self) -> Self:
        for name, ratio in (("tail_ratio", self.rollout.tail_ratio), ("head_ratio", self.rollout.head_ratio)):
            if ratio < 1.0 and isinstance(self.window, AllStepsConfig):
                raise ValueError(
                    f"rollout.{name} must be 1 when every step belongs to the window (window.type 'all'): there are "
                    "no other steps to shorten"
                )
            if ratio < 1.0 and self.rollout.kernel == "ode":
                raise ValueError(
                    f"rollout.{name} must be 1 with rollout.kernel 'ode': no step is stochastic, so take fewer "
                    "steps with rollout.num_steps instead"
                )
        return self

    @model_validator(mode="after")
    def _samples_of_a_group_differ(self) -> Self:
        if self.rollout.kernel == "ode" and self.rollout.noise_spread == 0.0:
            raise ValueError(
                "rollout.noise_spread must be above 0 with rollout.kernel 'ode': without noise on the way, samples "
                "that start from one noise are one picture. Neighbor GRPO takes 0.3, DiffusionNFT 1"
            )
        return self

    @model_validator(mode="after")
    def _loss_fits_kernel(self) -> Self:
        if isinstance(self.loss, GrpoLossConfig) and self.rollout.kernel == "ode":
            raise ValueError(
                "loss.type 'grpo' needs a stochastic step: set rollout.kernel to flow_sde, dance_sde, cps or gddim, "
                "or use a loss for deterministic samples (neighbor, nft, awm)"
            )
        if isinstance(self.loss, NeighborLossConfig) and self.rollout.kernel != "ode":
            raise ValueError(
                f"loss.type 'neighbor' compares deterministic steps: set rollout.kernel = 'ode' (it is "
                f"{self.rollout.kernel!r}) and rollout.noise_spread to about 0.3"
            )
        return self

    @model_validator(mode="after")
    def _neighbors_are_whole_groups(self) -> Self:
        if not isinstance(self.loss, NeighborLossConfig):
            return self
        if self.loss.anchors > self.rollout.group_size:
            raise ValueError(
                f"loss.anchors ({self.loss.anchors}) must be at most rollout.group_size ({self.rollout.group_size})"
            )
        if self.loss.updates_per_iteration > 1 and self.loss.update_split == "samples":
            raise ValueError(
                "loss.update_split must be 'prompts' with loss.type 'neighbor' and several updates: its softmax "
                "runs over whole groups"
            )
        if self.advantages.extremes or self.advantages.threshold:
            raise ValueError(
                "advantages.extremes and advantages.threshold must be 0 with loss.type 'neighbor': its softmax runs "
                "over whole groups. loss.anchors is what saves its model calls"
            )
        return self

    @model_validator(mode="after")
    def _threshold_leaves_samples(self) -> Self:
        # Quasi-norms come after the clip and scale by what else is in the group, so nothing is known beforehand.
        if not self.advantages.quasi_norm and self.advantages.threshold >= self.advantages.clip:
            raise ValueError(
                f"advantages.threshold ({self.advantages.threshold:g}) must be below advantages.clip "
                f"({self.advantages.clip:g}), or all samples but the clipped ones are left out of the update"
            )
        return self

    @model_validator(mode="after")
    def _extremes_fit_group(self) -> Self:
        if 2 * self.advantages.extremes > self.rollout.group_size:
            raise ValueError(
                f"advantages.extremes ({self.advantages.extremes}) counts the best and the worst samples, so it must "
                f"be at most half of rollout.group_size, {self.rollout.group_size // 2}"
            )
        return self
