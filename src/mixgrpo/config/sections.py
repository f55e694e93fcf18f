"""The sections of a config. The text under a field is its help on the command line and in the docs."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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
    num_frames: Positive = 1
    """Frames of a clip, for models that draw them: Wan and HunyuanVideo take 4 k + 1. 1: an image."""
    guidance_scale: float = Field(default=3.5, ge=0.0)
    """Strength of guidance. FLUX.1-dev takes it as an embedding: no second model call. Models with classifier-free
    guidance, such as SD3.5, make a second call when it is above 1."""
    guidance_scale_2: float = Field(default=0.0, ge=0.0)
    """Guidance of the second of two transformers, which Wan 2.2 A14B has for low noise. 0: as `guidance_scale`."""
    negative_prompt: str = ""
    """What classifier-free guidance leads away from. Only for models that have it."""
    max_sequence_length: Positive = 512
    """Longest prompt, in tokens of the model's main text encoder."""
    prompt_cache: str = ""
    """Folder for encoded prompts, such as ~/.cache/mixgrpo/prompts: a run encodes what it will see and lets go of the
    text encoders before training. Empty: they stay in memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights that are not trained. Trained weights and optimiser state are always float32."""
    autocast: Literal["off", "bfloat16"] = "off"
    """Type that the transformer computes in. Solver, log-probabilities and losses stay float32."""
    quantize: Literal["off", "int8", "nf4"] = "off"
    """Keep the transformer's frozen weights in 8 bits (torchao) or 4 bits (bitsandbytes, needs a GPU). For adapters
    only; extra `quantize`."""
    attention: str = "native"
    """Attention backend as diffusers names it, such as native, flash or _flash_3."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time for an update."""
    vae_decoding: Literal["whole", "sliced", "tiled"] = "whole"
    """Decode a micro-batch at once, image by image, or each in overlapping tiles, which shows a little at the seams."""
    offload: bool = False
    """Let VAE, text encoders and the copy of the starting model wait on the CPU while they are not used: less memory,
    some seconds an iteration."""
    compile: bool = False
    """Compile the transformer with torch.compile: minutes at the start, then faster steps."""
    device: str = "auto"
    """`auto` (cuda if there is one, else cpu), `cpu`, or a torch device such as `cuda:1`."""
    threads: Count = 0
    """CPU threads of torch. 0: as many as torch takes by itself."""

    def arguments(self, *, drawing: bool) -> dict[str, Any]:
        """Return arguments of `load_model`: for training, or for `drawing`, which takes prompts that no cache has."""
        others = {"path", "threads", "compile"}
        return self.model_dump(exclude={*others, "prompt_cache"} if drawing else others)


class PromptsConfig(Section):
    """Where the prompts come from (docs/data.md)."""

    train: str
    """A list that comes with the package (`nano-train`, `signs-train`), a .txt, .json, .jsonl or .csv file,
    `hub:owner/name[:split]`, or `hub:owner/name/FILE` for one such file of a dataset on the hub."""
    heldout: str
    """The same, such as `nano-heldout`, or `split:N`: hold N of the training prompts out, chosen by a hash of their
    text. A run says at its start if files overlap."""
    column: str = "prompt"
    """Column of a .json, .jsonl or .csv file, or of a dataset, that holds the prompt. Rewards can read the others."""


class RolloutConfig(Section):
    """How samples are drawn while training."""

    num_steps: int = Field(ge=2)
    """Denoising steps T of a sample, counted as if there were no Flash tail."""
    shift: float = Field(default=3.0, gt=0.0)
    """Time shift k of the noise schedule: sigma = k u / (1 + (k - 1) u)."""
    kernel: Literal["flow_sde", "dance_sde", "cps", "gddim", "ode"] = "flow_sde"
    """Transition of a window's step: Flow-GRPO's (the paper's), DanceGRPO's, Flow-CPS's, exact gDDIM, or none: with
    `ode` the whole trajectory is deterministic and the window only says which steps are trained."""
    eta: float = Field(default=0.7, gt=0.0)
    """Strength of the noise in a stochastic step."""
    group_size: int = Field(ge=2)
    """Samples per prompt G, compared with each other."""
    noise_spread: Fraction = 0.0
    """How far apart a group starts. 0: from one noise, as in MixGRPO and DanceGRPO; 1: from independent noises, as in
    Flow-GRPO; between: from neighbouring ones, as in Neighbor GRPO."""
    share_trunk: bool = True
    """Compute once what a group has in common, where it starts from one noise. Exact; off only to measure it."""
    micro_batch: Positive
    """Samples per model call while sampling. Changes memory and speed, never the result."""
    tail_ratio: float = Field(default=1.0, gt=0.0, le=1.0)
    """MixGRPO-Flash: keep this share of the steps after the window. 1: no Flash."""
    tail_order: Literal[1, 2, 3] = 1
    """Order of the DPM-Solver++ that takes the steps after the window, with kernel `ode` all. 1 is plain Euler."""
    tail_variant: Literal["midpoint", "heun", "corrected"] = "midpoint"
    """Which formula: midpoint or heun at order 2; corrected, at order 3 only, converges at order 3."""
    head_ratio: float = Field(default=1.0, gt=0.0, le=1.0)
    """Compress the steps before the window as well ("dual" Flash). The paper warns of it: on FLUX.1-dev HPSv2.1 fell
    from .358 to .335 and ImageReward from 1.528 to 1.235. 1: not compressed."""


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
    reach: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the positions, from the noisiest on, that are drawn from (Flow-GRPO-Fast: the first half)."""


class AllStepsConfig(Section):
    """Every step but the last is stochastic, as in Flow-GRPO and DanceGRPO."""

    type: Literal["all"] = "all"
    trained_fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the stochastic steps that is trained (DanceGRPO: 0.6)."""
    num_trained: Count = 0
    """Number of steps that are trained. 0: as `trained_fraction` says."""
    choice: Literal["random", "first"] = "random"
    """Which of the steps are trained: some drawn anew for every iteration, or always the first ones."""


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
    evaluation_only: bool = False
    """Score held-out pictures only, never those of training: an independent judge. Needs weight 0."""
    timeout: float = Field(default=60.0, gt=0.0)
    """Seconds that scoring one batch may take before its samples count as failed."""
    options: dict[str, Any] = {}
    """Keyword arguments of the reward's factory."""


class AdvantagesConfig(Section):
    """From scores to advantages, and which samples are worth an update."""

    mix: Literal["advantages", "rewards"] = "advantages"
    """Mix several rewards after normalising each in its group (the paper), or as a weighted sum before."""
    std: Literal["group", "batch"] = "group"
    """Whose standard deviation scores are divided by: their group's, or that of the whole batch (Flow-GRPO)."""
    clip: float = Field(default=5.0, gt=0.0)
    """Advantages are clipped to +- this."""
    quasi_norm: float = Field(default=0.0, ge=0.0)
    """Divide a group's advantages by their l_p quasi-norm with this p (Neighbor GRPO: 0.8). 0: do not."""
    extremes: Count = 0
    """Update on the k best and the k worst samples of each group only. 0: on all."""
    threshold: float = Field(default=0.0, ge=0.0)
    """Leave samples with an advantage nearer to 0 than this out of the update."""


class LossSection(Section):
    """What all losses have in common: how the samples of an iteration become updates."""

    kl_weight: float = Field(default=0.0, ge=0.0)
    """Weight of the divergence to the starting model. 0: not computed."""
    updates_per_iteration: Positive = 1
    """Optimiser updates per iteration; each takes its own share of the samples."""
    update_split: Literal["samples", "prompts"] = "samples"
    """What an update's share is: some samples of every group (the paper), or all samples of some prompts."""
    micro_batch: Positive
    """Samples per forward and backward call of an update. Changes memory and speed, never the result."""


class GrpoLossConfig(LossSection):
    """The GRPO update on the stochastic steps of the window, and its relatives."""

    type: Literal["grpo"] = "grpo"
    trust_region: Literal["clip", "divergence"] = "clip"
    """What keeps an update near the sampling policy: a clip on the ratio, or Flow-DPPO's mask by divergence."""
    clip_range: float = Field(default=1e-4, gt=0.0)
    """Clip: ratios to 1 +- this. Small because log-probabilities are means over latent dimensions."""
    max_divergence: float = Field(default=1e-5, gt=0.0)
    """Mask: KL divergence of a step, a mean over latent dimensions, from which on a sample may not move further."""
    ratio: Literal["plain", "normalised"] = "plain"
    """The ratio of densities, or GRPO-Guard's, normalised to mean 0 (log) and to one scale for all steps."""
    step_weights: Literal["uniform", "noise", "inverse_step"] = "uniform"
    """How steps count: alike, by their noise (TempFlow-GRPO), or by one over their length (GRPO-Guard)."""


class NeighborLossConfig(LossSection):
    """Neighbor GRPO's update on deterministic steps: a softmax over the group in place of a density."""

    type: Literal["neighbor"] = "neighbor"
    clip_range: float = Field(default=0.2, gt=0.0)
    """Ratios of softmax probabilities are clipped to 1 +- this."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Of the softmax, in units of the mean squared distance between two members of the group."""
    anchors: Positive = 4
    """Members of each group, drawn anew for every step, from which the model takes a step (B)."""


class NftLossConfig(LossSection):
    """DiffusionNFT's update on the forward process, at the sigmas of the window's steps."""

    type: Literal["nft"] = "nft"
    beta: float = Field(default=1.0, gt=0.0)
    """How strongly the two implicit policies lean to the trained one."""
    advantage_scale: float = Field(default=5.0, gt=0.0)
    """Advantage that counts as wholly good: r = 1/2 + 1/2 clip(A / this, -1, 1)."""
    old_decay_rate: float = Field(default=0.0, ge=0.0)
    """The sampling policy lags behind: after iteration i it keeps min(this * i, `old_decay_max`) of itself. 0: it is
    the trained policy, and no second copy of the weights is needed."""
    old_decay_max: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Largest share of itself that the sampling policy keeps."""


class AwmLossConfig(LossSection):
    """AWM's update on the forward process, at the sigmas of the window's steps: advantage-weighted matching."""

    type: Literal["awm"] = "awm"
    clip_range: float = Field(default=0.2, gt=0.0)
    """Ratios of the stand-in likelihoods are clipped to 1 +- this."""


LossConfig = Annotated[GrpoLossConfig | NeighborLossConfig | NftLossConfig | AwmLossConfig, Field(discriminator="type")]


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
    """Names of the layers that get an adapter. Empty: attention layers, and for the families FLUX.1, FLUX.2, Qwen-Image
    and Z-Image feed-forward layers too."""


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
    training_sampler: bool = False
    """Draw and score the held-out prompts a second time, the way training draws them, and report both and the gap."""
    diversity_prompts: Count = 8
    """Of this many held-out prompts, from the first on, draw several images and record how much they differ
    (docs/rewards.md). 0: off."""
    diversity_samples: int = Field(default=4, ge=2)
    """Images for each of these prompts."""
    best: str = ""
    """Reward whose held-out mean decides which checkpoint is best. Empty: the weighted sum of all rewards."""


class CheckpointConfig(Section):
    """What is kept of a run."""

    every: Positive = 10
    """Iterations between two checkpoints."""
    keep: Positive = 2
    """How many of the newest to keep, beside the best."""


class GuardConfig(Section):
    """When a run stops by itself, and when it raises an alarm."""

    max_failed_rewards: Fraction = 0.5
    """Stop when more than this share of an iteration's samples could not be scored by one reward."""
    max_skipped_updates: Positive = 5
    """Stop after this many updates in a row with a non-finite loss or gradient."""
    max_reward_drop_std: float = Field(default=1.5, gt=0.0)
    """Stop when a trained reward's mean over ten iterations is this many standard deviations of the first ten
    iterations' samples below the first ten's mean."""
    min_diversity: Fraction = 0.5
    """Raise an alarm, and go on, when the diversity of a prompt's images falls below this share of what it was before
    training. 0: never."""
