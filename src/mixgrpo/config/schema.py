"""The settings of a run: frozen pydantic models that know every key, every range and every rule between them.

The text under a field is its help on the command line and in the docs. An unknown key is an error, nothing is
rewritten silently, and every rule that can be checked without loading a model is checked here.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """A group of settings: frozen, strict about its keys, documented by the text under each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The generator that is post-trained, and how large its images are."""

    path: str
    """`flux-nano` (bundled), a diffusers folder, or a hub id such as black-forest-labs/FLUX.1-dev."""
    revision: str = ""
    """Branch, tag or commit of a hub id. Empty: its default branch."""
    height: Positive
    """Image height in pixels."""
    width: Positive
    """Image width in pixels."""
    guidance_scale: float = Field(default=3.5, ge=0.0)
    """Guidance as diffusers names it. FLUX.1-dev takes it as an embedding: no second model call."""
    max_sequence_length: Positive = 512
    """Longest prompt, in tokens of the model's main text encoder."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights that are not trained. Trained weights and optimiser state are always float32."""
    autocast: Literal["off", "bfloat16"] = "off"
    """Type that the transformer computes in. Solver, log-probabilities and losses stay float32."""
    attention: str = "native"
    """Attention backend as diffusers names it, such as native, flash or _flash_3."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time for an update."""
    device: str = "auto"
    """`auto` (cuda if there is one, else cpu), `cpu`, or a torch device such as `cuda:1`."""
    threads: Count = 0
    """CPU threads of torch. 0: as many as torch takes by itself."""


class PromptsConfig(Section):
    """Where the prompts come from: one a line; blank lines and lines that start with # are left out."""

    train: str
    """`nano-train` or `signs-train` (come with the package), or a text file."""
    heldout: str
    """`nano-heldout` or `signs-heldout` (come with the package), or a text file. Never trained on."""


class RolloutConfig(Section):
    """How samples are drawn while training."""

    num_steps: int = Field(ge=2)
    """Denoising steps T of a sample, counted as if there were no Flash tail."""
    shift: float = Field(default=3.0, gt=0.0)
    """Time shift k of the noise schedule: sigma = k u / (1 + (k - 1) u)."""
    kernel: Literal["flow_sde", "dance_sde", "cps", "gddim"] = "flow_sde"
    """Transition of a stochastic step: Flow-GRPO's (the paper's), DanceGRPO's, Flow-CPS's, or exact gDDIM."""
    eta: float = Field(default=0.7, gt=0.0)
    """Strength of the noise in a stochastic step."""
    group_size: int = Field(ge=2)
    """Samples per prompt G, compared with each other."""
    shared_noise: bool = True
    """Start all samples of a group from one noise, as MixGRPO and DanceGRPO do."""
    share_trunk: bool = True
    """With shared noise, compute once what a group has in common. Exact; off only to measure it."""
    micro_batch: Positive
    """Samples per model call while sampling. Changes memory and speed, never the result."""
    tail_ratio: float = Field(default=1.0, gt=0.0, le=1.0)
    """MixGRPO-Flash: keep this share of the steps after the window. 1: no Flash."""
    tail_order: Literal[1, 2, 3] = 1
    """Order of the DPM-Solver++ that takes the steps after the window. 1 is plain Euler."""
    tail_variant: Literal["midpoint", "heun", "corrected"] = "midpoint"
    """Which formula: midpoint or heun at order 2; corrected, at order 3 only, converges at order 3."""


class SlidingWindowConfig(Section):
    """MixGRPO's progressive window with a constant interval."""

    type: Literal["sliding"] = "sliding"
    size: Positive
    """Stochastic steps w in the window."""
    stride: Positive = 1
    """Steps that the window moves by."""
    interval: Positive = 25
    """Iterations between two moves (tau)."""
    after_last: Literal["restart", "stay"] = "restart"
    """After the last position: start over at the first, or stay at the last."""


class DecayingWindowConfig(Section):
    """MixGRPO's progressive window that moves faster and faster."""

    type: Literal["decaying"] = "decaying"
    size: Positive
    """Stochastic steps w in the window."""
    stride: Positive = 1
    """Steps that the window moves by."""
    interval: Positive = 25
    """Iterations at the first position (tau_0)."""
    decay: Literal["linear", "exponential"] = "exponential"
    """How the interval shrinks from position to position; it never falls below one iteration."""
    rate: float = Field(default=0.1, gt=0.0)
    """Exponential decay only: k in tau_0 exp(-k max(0, l - threshold))."""
    threshold: Count = 13
    """Exponential decay only: the window start up to which the interval stays constant."""
    after_last: Literal["restart", "stay"] = "restart"
    """After the last position: start over at the first, or stay at the last."""


class FrozenWindowConfig(Section):
    """A window that never moves (MixGRPO's frozen strategy; at start 0 that of Flash*)."""

    type: Literal["frozen"] = "frozen"
    size: Positive
    """Stochastic steps w in the window."""
    start: Count = 0
    """First stochastic step."""


class RandomWindowConfig(Section):
    """A window at a place drawn anew for every iteration, the same on all ranks."""

    type: Literal["random"] = "random"
    size: Positive
    """Stochastic steps w in the window."""


class AllStepsConfig(Section):
    """Every step but the last is stochastic, as in Flow-GRPO and DanceGRPO."""

    type: Literal["all"] = "all"
    trained_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the stochastic steps that is trained, drawn anew for every iteration (DanceGRPO: 0.6)."""


WindowConfig = Annotated[
    SlidingWindowConfig | DecayingWindowConfig | FrozenWindowConfig | RandomWindowConfig | AllStepsConfig,
    Field(discriminator="type"),
]


class RewardConfig(Section):
    """One reward: what scores the images, and how much it counts."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """Name in metrics and report."""
    use: str = ""
    """A built-in reward, or an import path `package.module:factory`. Empty: the built-in called `name`."""
    weight: float = Field(default=1.0, ge=0.0)
    """Weight in the advantage. 0: measured and reported, never trained on."""
    timeout: float = Field(default=60.0, gt=0.0)
    """Seconds that scoring one batch may take before its samples count as failed."""
    options: dict[str, Any] = {}
    """Keyword arguments of the reward's factory."""


class LossConfig(Section):
    """The GRPO update."""

    clip_range: float = Field(default=1e-4, gt=0.0)
    """Ratios are clipped to 1 +- this. Small because log-probabilities are means over latent dimensions."""
    advantage_clip: float = Field(default=5.0, gt=0.0)
    """Advantages are clipped to +- this."""
    reward_mix: Literal["advantages", "rewards"] = "advantages"
    """Mix several rewards after normalising each in its group (the paper), or as a weighted sum before."""
    kl_weight: float = Field(default=0.0, ge=0.0)
    """Weight of the KL divergence to the starting model. 0: not computed."""
    updates_per_iteration: Positive = 1
    """Optimiser updates per iteration; each takes its own share of the samples."""
    update_split: Literal["samples", "prompts"] = "samples"
    """What an update's share is: some samples of every group (the paper), or all samples of some prompts."""
    micro_batch: Positive
    """Samples per forward and backward call of an update. Changes memory and speed, never the result."""


class OptimConfig(Section):
    """AdamW and its learning rate."""

    lr: float = Field(gt=0.0)
    """Peak learning rate."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Decay of the gradient's running mean."""
    beta2: float = Field(default=0.999, ge=0.0, lt=1.0)
    """Decay of the squared gradient's running mean."""
    weight_decay: float = Field(default=1e-4, ge=0.0)
    """Decoupled weight decay."""
    warmup: Count = 0
    """Updates over which the rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the rate does after the warm-up: stay, or fall to `final_lr_fraction` of the peak at the end."""
    final_lr_fraction: Fraction = 0.0
    """Rate at the last update as a share of the peak (linear and cosine)."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are scaled down to this norm."""
    ema_decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay of the moving average of the weights that is evaluated and exported. 0: no average."""


class LoraConfig(Section):
    """Low-rank adapters (peft)."""

    rank: Count = 0
    """Rank of the adapters. 0: full fine-tuning."""
    alpha: Positive = 64
    """Scale of the adapters (alpha / rank)."""
    target_modules: tuple[str, ...] = ()
    """Names of the layers that get an adapter. Empty: the family's attention and feed-forward layers."""


class EvalConfig(Section):
    """Evaluation on held-out prompts: fixed noise, ODE sampling."""

    every: Positive = 10
    """Iterations between two evaluations. The first is before training, the last after it."""
    num_prompts: Count = 0
    """How many held-out prompts, from the first on. 0: all."""
    num_steps: Positive
    """Denoising steps."""
    seed: Seed = 1000
    """Seed of the evaluation's noise."""
    samples: Positive = 16
    """Prompts whose image is kept at every evaluation, from the same noise."""
    best: str = ""
    """Reward whose held-out mean decides which checkpoint is best. Empty: the weighted sum of all rewards."""


class CheckpointConfig(Section):
    """What is kept of a run."""

    every: Positive = 10
    """Iterations between two checkpoints."""
    keep: Positive = 2
    """How many of the newest to keep, beside the best."""


class GuardConfig(Section):
    """When a run stops by itself."""

    max_failed_rewards: Fraction = 0.5
    """Stop when more than this share of an iteration's samples could not be scored by one reward."""
    max_skipped_updates: Positive = 5
    """Stop after this many updates in a row with a non-finite loss or gradient."""
    max_reward_drop: Fraction = 0.4
    """Stop when a trained reward's mean over ten iterations is this share below that of the first ten."""


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
            if self.rollout.tail_ratio < 1.0:
                raise ValueError(
                    "rollout.tail_ratio must be 1 when every step is stochastic (window.type 'all'): there is "
                    "no deterministic tail to shorten"
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
        if not any(reward.weight > 0 for reward in self.rewards):
            raise ValueError("rewards: every weight is 0, so there is nothing to train on; give one a weight above 0")
        if self.eval.best and self.eval.best not in names:
            raise ValueError(f"eval.best is {self.eval.best!r}, which is no reward of this run; allowed: {names}")
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
    def _noise_tells_samples_apart(self) -> Self:
        if self.rollout.share_trunk and not self.rollout.shared_noise:
            raise ValueError(
                "rollout.share_trunk needs rollout.shared_noise: samples that start from different noise have "
                "no computation in common. Set rollout.share_trunk = false"
            )
        return self
