"""A run from start to end: Algorithm 1 of arXiv 2507.21802 with evaluation, checkpoints and a report around it."""

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import mixgrpo
from mixgrpo.config.load import dump_resolved
from mixgrpo.config.schema import Config
from mixgrpo.config.sections import NftLossConfig
from mixgrpo.data.prompts import prompt_batch
from mixgrpo.data.sets import load_prompt_sets
from mixgrpo.errors import ConfigError, MixGRPOError
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import TrajectoryPlan, ode_plan
from mixgrpo.flow.rollout import Kernel
from mixgrpo.report import write_report
from mixgrpo.rewards import make_reward
from mixgrpo.rewards.scorer import Scorer
from mixgrpo.rl.advantages import advantage_shares, group_advantages, quasi_norm
from mixgrpo.rl.window import trained_steps
from mixgrpo.train.checkpoint import load_checkpoint, save_checkpoint
from mixgrpo.train.clock import Clock, Interrupted, StopRequest
from mixgrpo.train.diversity import STREAM, measure_diversity
from mixgrpo.train.export import export_run, load_policy
from mixgrpo.train.guard import check_collapse, check_failures, check_skipped, longest_streak, remember_rewards
from mixgrpo.train.inference import draw_batches, score_batches
from mixgrpo.train.memory import peak_memory_bytes, reset_peak_memory
from mixgrpo.train.metrics import JsonlSink, MetricSink, Sinks
from mixgrpo.train.objective import make_objective
from mixgrpo.train.prompts import check_negatives, encode_ahead
from mixgrpo.train.samples import SampleSheet
from mixgrpo.train.scores import Means, heldout_figures, reward_rows, summarise
from mixgrpo.train.settings import make_plan, make_window
from mixgrpo.train.state import RunState
from mixgrpo.train.step import Experience, make_kernel, sample_and_score
from mixgrpo.train.update import Updater, UpdateReport


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    reason: Literal["finished", "interrupted"]
    iteration: int
    run: Path


def train(config: Config, run: Path, *, resume: bool = False, sinks: Sequence[MetricSink] = ()) -> Outcome:
    """Train as `config` says and leave everything in the folder `run`; with `resume`, go on from its last checkpoint.

    SIGINT and SIGTERM save a checkpoint and return "interrupted"; an iteration that was under way is done again later.

    Raises:
        MixGRPOError: for wrong settings, before anything is drawn; or when the run stops by itself (see `GuardConfig`),
            in which case a checkpoint of the iteration before is on disk.
    """
    trainer = Trainer(config, run, resume=resume, sinks=sinks)
    try:
        return trainer.run_all()
    finally:
        trainer.close()


class Trainer:
    """What lives as long as a run: model, optimiser, rewards, prompts, and the state between iterations."""

    def __init__(
        self,
        config: Config,
        run: Path,
        *,
        resume: bool,
        sinks: Sequence[MetricSink],
        stop: StopRequest | None = None,
    ) -> None:
        """Load everything, cheap things and likely mistakes first; `stop` may be one that several trainers share."""
        self.config, self.run = config, run
        if not resume:
            if (run / "metrics.jsonl").exists():
                raise ConfigError(f"{run} holds an earlier run: choose a new folder, or resume it")
            run.mkdir(parents=True, exist_ok=True)
            dump_resolved(config, run / "resolved.json")
        self.sets = load_prompt_sets(config)
        self.prompts, self.heldout = (
            self.sets.training.prompts,
            self.sets.heldout.prompts[: config.eval.num_prompts or None],
        )
        self.scorer = make_scorer(config)
        if config.model.threads:
            torch.set_num_threads(config.model.threads)
        check_negatives(config, [*self.prompts, *self.heldout])
        encode_ahead(config, self.prompts, self.heldout, progress=Sinks(sinks).progress)
        self.policy = load_policy(config)
        if config.model.compile:
            self.policy.model.transformer.compile()
        self.optimizer = torch.optim.AdamW(
            list(self.policy.trained.values()),
            lr=config.optim.lr,
            betas=(config.optim.beta1, config.optim.beta2),
            weight_decay=config.optim.weight_decay,
        )
        self.state = load_checkpoint(run, self.policy, self.optimizer) if resume else RunState()
        self.window = make_window(config)
        self.kernel = make_kernel(config)
        self.clock, self.stop = Clock(), stop or StopRequest()
        self.updater = Updater(self.policy, self.optimizer, config, make_objective(config, self.kernel), self.clock)
        rows = JsonlSink(run / "metrics.jsonl", keep_before=self.state.iteration if resume else None)
        self.sinks = Sinks([rows, *sinks])

    def run_all(self) -> Outcome:
        """Evaluate, iterate, evaluate, export."""
        self.begin()
        with self.stop.listening():
            try:
                while not self.done:
                    self.advance()
                self.finish()
            except Interrupted:
                return self.interrupt()
            except MixGRPOError as error:
                self.save()
                self.end(f"stopped: {error}")
                raise
            self.sinks.progress("exporting", 0, 1)
            export_run(self.run, self.run / "export", policy=self.policy)
            return self.end("finished")

    def begin(self) -> None:
        """Write down what starts, or goes on, and on what machine."""
        self.sinks.record(
            {
                "kind": "start",
                "time": time.time(),
                "version": mixgrpo.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
                "trained_parameters": sum(weight.numel() for weight in self.policy.trained.values()),
                "prompts": self.sets.figures(self.policy.model.count_tokens, self.config.model.max_sequence_length),
                "resumed_from": self.state.iteration or None,
            }
        )

    @property
    def done(self) -> bool:
        """Whether all iterations are done."""
        return self.state.iteration >= self.config.iterations

    def advance(self) -> None:
        """Do the next iteration, after an evaluation and before a checkpoint where they are due.

        Raises:
            Interrupted: if somebody asked to stop; the state is then that between two iterations.
        """
        self.stop.check()
        if self.state.iteration % self.config.eval.every == 0:
            self.evaluate()
        self.iterate(self.state.iteration)
        if self.state.iteration % self.config.checkpoint.every == 0:
            self.save()

    def finish(self) -> None:
        """Evaluate and save the result.

        Raises:
            Interrupted: if somebody asked to stop.
        """
        self.evaluate()
        self.save()

    def interrupt(self) -> Outcome:
        """Save, so that the run can be resumed."""
        self.save()
        return self.end("interrupted")

    def iterate(self, iteration: int) -> None:
        """Sample a group for every prompt of the iteration, score it, and update the policy on the window's steps."""
        config, started = self.config, time.perf_counter()
        self.clock.take()
        counts_from_here = reset_peak_memory(self.policy.model.device) is not None
        window = self.window.at(iteration)
        plan = make_plan(config, window)
        trained = trained_steps(self.window, iteration)
        count = config.prompts_per_iteration
        chosen = prompt_batch(config.seed, iteration, count=count, total=len(self.prompts))
        with self.clock.span("sample"):
            experience = sample_and_score(
                self.policy,
                self.scorer,
                [self.prompts[index] for index in chosen],
                config,
                plan=plan,
                noise=Noise(config.seed, iteration, self.policy.model.latent_shape),
                kernel=self.kernel,
                trained=trained,
                clock=self.clock,
                stop=self.stop,
                progress=partial(self.sinks.progress, "sampling"),
            )
        table = experience.scores
        check_failures(table.failed, count * config.rollout.group_size, table.failures, config)
        scores = {name: values.reshape(count, -1) for name, values in experience.scores.values.items()}
        advantages = self._advantages(scores)
        with self.clock.span("update"):
            report = self.updater.update(
                experience,
                advantages,
                first_update=self.state.updates,
                stop=self.stop,
                progress=partial(self.sinks.progress, "updating"),
            )
        if isinstance(config.loss, NftLossConfig):
            self.policy.update_lagging(min(config.loss.old_decay_rate * iteration, config.loss.old_decay_max))
        self.state.updates += config.loss.updates_per_iteration
        self.state.iteration = iteration + 1
        memory = {"peak_memory": peak_memory_bytes(self.policy.model.device)} if counts_from_here else {}
        took = {"seconds": time.perf_counter() - started, **memory}
        self._record(iteration, window, experience, scores, advantages, report, took)
        longest, self.state.skipped_in_a_row = longest_streak(self.state.skipped_in_a_row, report.skipped)
        check_skipped(longest, config)
        check_collapse(self.state, config)

    def evaluate(self) -> None:
        """Draw the held-out prompts by ODE sampling from fixed noise, score them, and keep the best weights."""
        config, started, iteration = self.config, time.perf_counter(), self.state.iteration
        sheet = SampleSheet(self.run, iteration, self.heldout[: config.eval.samples])
        plan = ode_plan(config.eval.num_steps, config.rollout.shift)
        with self.policy.averaged():
            means = self._score_heldout(plan, None, "evaluating", sheet)
            trained_as = self._evaluate_training_sampler() if config.eval.training_sampler else {}
            diversity = self._diversity(plan)
        check_failures(means.failed, len(self.heldout), {}, config)
        sheet.close()
        value = self._judge(means)
        # a run that was resumed here evaluates the same weights again
        best = self.state.best is None or value > self.state.best or self.state.best_iteration == iteration
        if best:
            self.state.best, self.state.best_iteration = value, iteration
            self.save(best=True)
        self.sinks.record(
            {
                "kind": "eval",
                "iteration": iteration,
                "time": time.time(),
                "seconds": time.perf_counter() - started,
                "weights": "average" if self.policy.average else "policy",
                "num_prompts": len(self.heldout),
                **heldout_figures(means),
                **trained_as,
                **diversity,
                "failed": means.failed,
                "best": best,
            }
        )
        write_report(self.run)

    def _evaluate_training_sampler(self) -> dict[str, dict[str, dict[str, float]]]:
        """Draw the held-out prompts as the next iteration (after the last, the last one) draws its samples."""
        iteration = min(self.state.iteration, self.config.iterations - 1)
        plan = make_plan(self.config, self.window.at(iteration))
        return {"training_sampler": heldout_figures(self._score_heldout(plan, self.kernel, "training sampler", None))}

    def _score_heldout(
        self, plan: TrajectoryPlan, kernel: Kernel | None, phase: str, sheet: SampleSheet | None
    ) -> Means:
        """Draw one image per held-out prompt from fixed noise and score them."""
        batches = self._draw(self.heldout, plan, phase, kernel=kernel)
        keep = None if sheet is None else sheet.add
        return score_batches(batches, self.heldout, self.scorer, on_images=keep)

    def _diversity(self, plan: TrajectoryPlan) -> dict[str, float]:
        """Draw the first held-out prompts several times, from noise of their own; nothing where that is off."""
        settings = self.config.eval
        prompts = self.heldout[: settings.diversity_prompts]
        draw = partial(self._draw, plan=plan, phase="diversity", stream=STREAM)
        return {"diversity": measure_diversity(draw, prompts, settings.diversity_samples)} if prompts else {}

    def _draw(
        self, prompts: Sequence[str], plan: TrajectoryPlan, phase: str, *, kernel: Kernel | None = None, stream: int = 0
    ) -> Iterator[tuple[range, Tensor]]:
        """Draw one image per prompt from fixed noise, and tell how far that is.

        Raises:
            Interrupted: if somebody asked to stop.
        """
        batches = draw_batches(
            self.policy.model,
            prompts,
            plan=plan,
            seed=self.config.eval.seed,
            batch=self.config.rollout.micro_batch,
            stream=stream,
            kernel=kernel,
            # an Euler plan has no formula to choose, and "corrected" is none of its order
            tail_variant=self.config.rollout.tail_variant if plan.tail_order > 1 else "midpoint",
        )
        self.sinks.progress(phase, 0, len(prompts))
        for rows, images in batches:
            self.stop.check()
            yield rows, images
            self.sinks.progress(phase, rows.stop, len(prompts))

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint of the state between two iterations."""
        self.sinks.progress("saving", 0, 1)
        save_checkpoint(self.run, self.state, self.policy, self.optimizer, keep=self.config.checkpoint.keep, best=best)

    def close(self) -> None:
        """Let go of threads and files."""
        self.scorer.close()
        self.sinks.close()

    def _advantages(self, scores: dict[str, Tensor]) -> Tensor:
        """Return the advantages [P, G] of the scores [P, G] by reward."""
        settings = self.config.advantages
        advantages = group_advantages(
            scores, weights=self._weights, mix=settings.mix, clip=settings.clip, std=settings.std
        )
        if settings.quasi_norm:
            advantages = quasi_norm(advantages, power=settings.quasi_norm)
        return advantages.to(self.policy.model.device)

    def _shares(self, scores: dict[str, Tensor]) -> dict[str, float]:
        """Return which share of the advantages each reward makes."""
        settings = self.config.advantages
        return advantage_shares(scores, weights=self._weights, mix=settings.mix, std=settings.std)

    @property
    def _weights(self) -> dict[str, float]:
        return {reward.name: reward.weight for reward in self.config.rewards if not reward.evaluation_only}

    def _judge(self, means: Means) -> float:
        """Return the held-out figure that decides which weights are best."""
        if self.config.eval.best:
            return means.rewards[self.config.eval.best]
        return sum(reward.weight * means.rewards[reward.name] for reward in self.config.rewards)

    def _record(
        self,
        iteration: int,
        window: range,
        experience: Experience,
        scores: dict[str, Tensor],
        advantages: Tensor,
        report: UpdateReport,
        took: dict[str, float],
    ) -> None:
        means = summarise(experience.scores)
        remember_rewards(self.state, rewards := reward_rows(scores, means, self._shares(scores)))
        num_samples = advantages.numel()
        self.sinks.record(
            {
                "kind": "train",
                "iteration": iteration,
                "time": time.time(),
                **took,
                "window": [window.start, window.stop],
                "lr": self.optimizer.param_groups[0]["lr"],
                "rewards": rewards,
                "details": means.details,
                **report.metrics,
                "grad_norm": report.grad_norm,
                "skipped_updates": sum(report.skipped),
                "skipped_groups": int((advantages == 0).all(1).sum()),
                "steps": {str(step): figures for step, figures in report.steps.items()},
                "calls": {
                    "sampling": experience.calls / num_samples,
                    **{name: states / num_samples for name, states in asdict(report.calls).items()},
                },
                "timing": self._timing(took["seconds"]),
            }
        )

    def _timing(self, seconds: float) -> dict[str, float]:
        spans = self.clock.take()
        inside = sum(spans.get(name, 0.0) for name in ("model", "decode", "score_wait", "encode"))
        return {**spans, "other": seconds - inside}

    def end(self, reason: str) -> Outcome:
        """Write down how the run ended, and its report."""
        self.sinks.record({"kind": "end", "iteration": self.state.iteration, "time": time.time(), "reason": reason})
        write_report(self.run)
        return Outcome("finished" if reason == "finished" else "interrupted", self.state.iteration, self.run)


def make_scorer(config: Config) -> Scorer:
    """Build the rewards of a config and the threads that call them."""
    return Scorer(
        {reward.name: make_reward(reward.use or reward.name, reward.options) for reward in config.rewards},
        timeout={reward.name: reward.timeout for reward in config.rewards},
    )
