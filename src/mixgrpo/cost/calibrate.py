"""Measures how fast this machine is at the parts of an iteration, each by itself, in about a minute."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mixgrpo.config.schema import Config
from mixgrpo.cost.calls import Batches, iteration_calls, kinds_of_iterations
from mixgrpo.cost.seconds import Line, Speeds
from mixgrpo.data.prompts import load_prompts
from mixgrpo.models import Conditioning
from mixgrpo.rewards.scorer import Scorer
from mixgrpo.train.export import load_policy
from mixgrpo.train.loop import make_scorer
from mixgrpo.train.policy import Policy

Clock = Callable[[], float]
"""`time.perf_counter`, or on a busy machine `time.process_time`: seconds of this process's threads, not of waiting."""


def calibrate(config: Config, *, seconds: float = 60.0, clock: Clock = time.perf_counter) -> Speeds:
    """Load the model and the rewards of a config and time their calls, at the sizes that its iterations make.

    All kinds and sizes take turns until `seconds` are over, three turns at least, so that a machine that gets slower
    gets slower for all of them; the medians count.
    """
    if config.model.threads:
        torch.set_num_threads(config.model.threads)
    live = config.model.model_copy(update={"prompt_cache": ""})
    policy, scorer = load_policy(config.model_copy(update={"model": live})), make_scorer(config)
    try:
        bench = _Bench(config, policy, scorer)
        return bench.run(seconds, clock)
    finally:
        scorer.close()


@dataclass
class _Bench:
    """What is timed, and the times so far."""

    config: Config
    policy: Policy
    scorer: Scorer
    times: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = load_prompts(self.config.prompts.train, column=self.config.prompts.column)
        self.prompts = [texts[index % len(texts)] for index in range(self.config.prompts_per_iteration)]
        self.optimizer = torch.optim.AdamW(list(self.policy.trained.values()), lr=0.0)
        self.conditioning = self.policy.model.encode(self.prompts)

    def run(self, seconds: float, clock: Clock) -> Speeds:
        """Take turns, and draw lines through the medians."""
        work = self._work()
        for _, size, call in work:
            call(size)  # the first call of a size is slower
        start, turns = time.perf_counter(), 0
        while turns < 3 or time.perf_counter() - start < seconds:
            for name, size, call in work:
                self._synchronise()
                begin = clock()
                call(size)
                self._synchronise()
                self.times.setdefault((name, size), []).append(clock() - begin)
            turns += 1
        return Speeds(
            forward=self._line("forward"),
            update=self._line("update"),
            decode=self._line("decode"),
            score=self._line("score"),
            encode=self._line("encode"),
            step=statistics.median(self.times["step", 1]),
        )

    def _work(self) -> list[tuple[str, int, Callable[[int], None]]]:
        """Return (name, size, call), each with the smallest and the largest size that an iteration makes."""
        calls = [iteration_calls(self.config, iteration) for iteration, _ in kinds_of_iterations(self.config)]
        chunks = [chunk for each in calls for chunk in each.chunks]
        sizes = {
            "forward": _ends(*(chunk.sampling for chunk in chunks), *(each.old + each.reference for each in calls)),
            "update": _ends(*(each.update for each in calls)),
            "decode": _ends(*(chunk.decoding for chunk in chunks)),
            "score": _ends(Batches(chunk.images for chunk in chunks)),
            "encode": [self.config.prompts_per_iteration],
            "step": [1],
        }
        does = {
            "forward": self._forward,
            "update": self._update,
            "decode": self._decode,
            "score": self._score,
            "encode": self._encode,
            "step": self._step,
        }
        return [(name, size, does[name]) for name, each in sizes.items() for size in each]

    def _line(self, name: str) -> Line:
        """Return the line through the medians of the smallest and the largest size; nothing takes less than no time."""
        medians = {size: statistics.median(times) for (kind, size), times in self.times.items() if kind == name}
        small, large = min(medians), max(medians)
        each = (medians[large] - medians[small]) / (large - small) if large > small else math.inf
        fixed = medians[small] - each * small
        return Line(fixed=fixed, each=each) if fixed > 0.0 else Line(fixed=0.0, each=medians[large] / large)

    def _inputs(self, size: int) -> tuple[torch.Tensor, Conditioning]:
        model = self.policy.model
        rows = torch.arange(size, device=model.device) % len(self.prompts)
        return torch.randn(size, *model.latent_shape, device=model.device), self.conditioning.take(rows)

    @torch.no_grad()
    def _forward(self, size: int) -> None:
        x, conditioning = self._inputs(size)
        self.policy.velocity(x, 0.5, conditioning)

    def _update(self, size: int) -> None:
        x, conditioning = self._inputs(size)
        self.policy.velocity(x, 0.5, conditioning).float().square().mean().backward()

    @torch.no_grad()
    def _decode(self, size: int) -> None:
        self.policy.model.decode(self._inputs(size)[0])

    def _score(self, size: int) -> None:
        model = self.config.model
        frames = (model.num_frames,) if model.num_frames > 1 else ()
        images = torch.rand(size, *frames, 3, model.height, model.width)
        self.scorer.submit(images, [self.prompts[index % len(self.prompts)] for index in range(size)]).result()

    def _encode(self, size: int) -> None:
        self.policy.model.encode(self.prompts[:size])

    def _step(self, size: int) -> None:
        del size
        weights = list(self.policy.trained.values())
        torch.nn.utils.clip_grad_norm_(weights, self.config.optim.max_grad_norm)
        self.optimizer.step()

    def _synchronise(self) -> None:
        if self.policy.model.device.type == "cuda":
            torch.cuda.synchronize(self.policy.model.device)


def _ends(*batches: Batches) -> list[int]:
    """Return the smallest and the largest size of call."""
    sizes = [size for each in batches for size in each]
    return sorted({min(sizes), max(sizes)}) if sizes else []
