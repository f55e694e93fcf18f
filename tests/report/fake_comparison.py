"""Folders of comparisons whose every number is chosen, and one that looks like a real one of many methods.

python tests/report/fake_comparison.py FOLDER        write the second kind, to look at its page
"""

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixgrpo.config.comparison import Entrant, Session, Terms, write_terms
from mixgrpo.report.comparison import run_folder_of
from report.fake_run import COLORS, START, WORDS, FakeRun, draw, write_rows

CALLS = {"sampling": 8.0, "old": 0.0, "reference": 0.0, "update": 4.0, "saved": 0.0}
SAMPLES = 120
"""Images of an iteration: 10 prompts of 12."""


@dataclass
class FakeCourse:
    """A run whose held-out figures are given, evaluation by evaluation."""

    evals: Mapping[int, Mapping[str, float]]
    """Iteration -> figure -> value; a name with a slash is a detail."""
    seconds: float = 2.0
    calls: Mapping[str, float] = field(default_factory=lambda: dict(CALLS))
    iterations: int | None = None
    """Iterations done; None: up to the last evaluation."""
    planned: int | None = None
    """Iterations that were to be done; None: as many as were."""
    reason: str | None = "finished"
    training: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    rewards: Sequence[Mapping[str, Any]] = ()
    noise: float = 0.0
    peak_memory: int | None = None
    windows: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Iteration -> window from there on; steps 0 and 1 before."""
    skill: Mapping[int, float] | None = None
    """Iteration -> how well the pictures are drawn; None: no pictures."""

    def write(self, folder: Path, seed: int = 0) -> Path:
        folder.mkdir(parents=True)
        planned = self.done if self.planned is None else self.planned
        config = FakeRun(iterations=planned).config() | {"seed": seed} | dict(self.config)
        names = dict.fromkeys(name.split("/")[0] for figures in self.evals.values() for name in figures)
        config["rewards"] = list(self.rewards) or [{"name": name, "weight": 1.0} for name in names]
        config["eval"] = {**config["eval"], "best": ""}
        (folder / "resolved.json").write_text(json.dumps(config, indent=2))
        write_rows(folder, self.rows(seed))
        if self.skill is not None:
            write_pictures(folder, self.skill)
        return folder

    @property
    def done(self) -> int:
        return max(self.evals, default=0) if self.iterations is None else self.iterations

    def rows(self, seed: int) -> list[dict[str, Any]]:
        done, rng, time = self.done, random.Random(seed), START
        rows: list[dict[str, Any]] = [
            {
                "kind": "start",
                "time": time,
                "version": "0.2.0",
                "torch": "2.13.0+cpu",
                "python": "3.11.7",
                "machine": "Linux x86_64, 2 threads",
                "trained_parameters": 5_100_000,
            }
        ]
        for iteration in range(done + 1):
            if iteration in self.evals:
                time += 6.0
                rows.append(self.eval_row(iteration, time))
            if iteration < done:
                seconds = self.seconds * (1 + rng.gauss(0, self.noise) if self.noise else 1)
                time += seconds
                rows.append(self.train_row(iteration, time, seconds))
        if self.reason:
            rows.append({"kind": "end", "iteration": done, "time": time, "reason": self.reason})
        return rows

    def eval_row(self, iteration: int, time: float) -> dict[str, Any]:
        row = {"kind": "eval", "iteration": iteration, "time": time, "seconds": 6.0, "weights": "policy"}
        row |= {"num_prompts": 256, "best": False, "failed": {}} | self._figures(self.evals[iteration])
        if iteration in self.training:
            row["training_sampler"] = self._figures(self.training[iteration])
        return row

    def _figures(self, figures: Mapping[str, float]) -> dict[str, Any]:
        return {
            "rewards": {name: value for name, value in figures.items() if "/" not in name},
            "details": {name: value for name, value in figures.items() if "/" in name},
            "standard_errors": {name: error for name, error in self.errors.items() if name in figures},
        }

    def train_row(self, iteration: int, time: float, seconds: float) -> dict[str, Any]:
        window = next((w for start, w in sorted(self.windows.items(), reverse=True) if start <= iteration), (0, 2))
        row = {"kind": "train", "iteration": iteration, "time": time, "seconds": seconds, "window": list(window)}
        row |= {"lr": 1e-4, "calls": dict(self.calls), "rewards": {}, "details": {}}
        return row | ({} if self.peak_memory is None else {"peak_memory": self.peak_memory})


def write_comparison(
    folder: Path, courses: Mapping[str, Sequence[FakeCourse | None]], *, target: str = "", **terms: Any
) -> Path:
    """Write a comparison: method -> its runs by seed, None for one that has not begun."""
    titles = terms.pop("titles", {})
    write_terms(
        folder,
        Terms.model_validate(
            {
                "model": "flux-nano",
                "methods": tuple(Entrant(name=name, title=titles.get(name, name)) for name in courses),
                "seeds": max(len(runs) for runs in courses.values()),
                "order": "interleaved",
                "target": target or next(iter(courses)),
                "sessions": (
                    Session(begun=START, command="mixgrpo compare flux-nano", ended=START + 60, reason="finished"),
                ),
                **terms,
            }
        ),
    )
    for method, runs in courses.items():
        for seed, course in enumerate(runs):
            if course is not None:
                course.write(run_folder_of(folder, method, seed), seed)
    return folder


def write_pictures(folder: Path, skill: Mapping[int, float], size: tuple[int, int] = (96, 32)) -> None:
    names = list(COLORS)
    prompts = [
        f'the word "{word}" in {names[number % 6]} on {names[(number * 5 + 1) % 6]}'
        for number, word in enumerate(WORDS * 2)
    ]
    sheets: list[dict[str, Any]] = []
    for iteration, level in skill.items():
        files = [f"{iteration:06d}/{number:03d}.png" for number in range(len(prompts))]
        for number, file in enumerate(files):
            path = folder / "samples" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(prompts[number], size, level, number).save(path)
        sheets.append({"iteration": iteration, "files": files})
    (folder / "samples" / "index.json").write_text(json.dumps({"prompts": prompts, "sheets": sheets}))


@dataclass
class Sketch:
    """A method of the large comparison."""

    title: str
    gain: float
    pace: float
    seconds: float
    sampling: float
    update: float
    old: float = 0.0
    hacks: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


SKETCHES = {
    "dancegrpo": Sketch("DanceGRPO", 0.17, 14, 8.1, 8, 4, settings={"rollout": {"kernel": "dance_sde", "eta": 0.3}}),
    "flow-grpo": Sketch("Flow-GRPO", 0.18, 13, 11.2, 8, 7),
    "flow-grpo-fast": Sketch("Flow-GRPO-Fast", 0.16, 12, 4.4, 5.2, 2),
    "mixgrpo": Sketch("MixGRPO", 0.22, 10, 4.7, 5.3, 1.08),
    "mixgrpo-flash": Sketch("MixGRPO-Flash", 0.21, 11, 3.9, 3.6, 1.08, settings={"rollout": {"tail_ratio": 0.4}}),
    "mixgrpo-flash-star": Sketch("MixGRPO-Flash*", 0.19, 10, 3.3, 2.9, 1.08),
    "mixgrpo-cps": Sketch("MixGRPO-CPS", 0.205, 10, 4.7, 5.3, 1.08, settings={"rollout": {"kernel": "cps"}}),
    "neighbor-grpo": Sketch("Neighbor GRPO", 0.2, 12, 3.1, 8, 1.33, old=0.5),
    "grpo-guard": Sketch("GRPO-Guard", 0.215, 12, 4.9, 5.3, 1.08),
    "branchgrpo": Sketch("BranchGRPO", 0.10, 12, 6.0, 4.4, 4.4),
    "diffusion-nft": Sketch("DiffusionNFT", 0.24, 8, 5.2, 8, 2, hacks=True),
    "awm": Sketch("AWM", 0.12, 20, 4.1, 8, 1),
}
JUDGED = [
    {"name": "ocr", "use": "ocr", "weight": 1.0},
    {"name": "colors", "use": "colors", "weight": 0.5},
    {"name": "tesseract", "use": "tesseract", "weight": 0.0, "evaluation_only": True},
]
ERRORS = {"ocr": 0.0164, "colors": 0.0075, "tesseract": 0.022, "ocr/exact": 0.03, "tesseract/exact": 0.03}


def sketch_course(sketch: Sketch, seed: int, *, iterations: int, done: int | None = None) -> FakeCourse:
    """Return a run of a sketched method."""
    rng = random.Random(f"{sketch.title} {seed}")
    talent = rng.gauss(1, 0.05)
    evals: dict[int, dict[str, float]] = {}
    training: dict[int, dict[str, float]] = {}
    skill: dict[int, float] = {}
    last = iterations if done is None else done
    for iteration in range(0, last + 1, 5):
        up = 1 - math.exp(-iteration / sketch.pace)
        shake = 1.0 if iteration else 0.0
        judge = -0.25 * up if sketch.hacks else 0.9 * sketch.gain / 0.2 * up
        figures = {
            "ocr": 0.745 + sketch.gain * talent * up + shake * rng.gauss(0, 0.004),
            "ocr/exact": 0.453 + 1.3 * sketch.gain * talent * up + shake * rng.gauss(0, 0.012),
            "colors": 0.957 + 0.03 * up + shake * rng.gauss(0, 0.002),
            "tesseract": 0.412 + 0.2 * judge + shake * rng.gauss(0, 0.008),
            "tesseract/exact": 0.203 + 0.2 * judge + shake * rng.gauss(0, 0.01),
        }
        evals[iteration], skill[iteration] = figures, figures["ocr/exact"]
        loss = 0.05 + 0.16 * (1 - 0.6 * up) * (1.5 if sketch.title == "DanceGRPO" else 1)
        training[iteration] = {name: value * (1 - loss) for name, value in figures.items()}
    return FakeCourse(
        evals=evals,
        training=training,
        errors=ERRORS,
        rewards=JUDGED,
        seconds=sketch.seconds * rng.gauss(1, 0.02),
        noise=0.06,
        calls={"sampling": sketch.sampling, "old": sketch.old, "reference": 0.0, "update": sketch.update, "saved": 0.0},
        planned=iterations,
        iterations=done,
        reason="finished" if done is None else "interrupted",
        peak_memory=round((1.1 + 0.1 * sketch.update) * 2**30),
        config=merged(sketch.settings),
        skill={key: skill[key] for key in (0, last)},
    )


def merged(settings: Mapping[str, Any]) -> dict[str, Any]:
    config = FakeRun().config()
    return {section: {**config[section], **values} for section, values in settings.items()}


def write_large(folder: Path, *, methods: Sequence[str] = (), seeds: int = 3, unfinished: bool = False) -> Path:
    """Write a comparison of many methods; `unfinished`: as an interruption in the last seed leaves it."""
    names = list(methods) or list(SKETCHES)
    courses: dict[str, list[FakeCourse | None]] = {}
    for name in names:
        courses[name] = [sketch_course(SKETCHES[name], seed, iterations=30) for seed in range(seeds)]
        if unfinished:
            courses[name][-1] = sketch_course(SKETCHES[name], seeds - 1, iterations=30, done=10)
    line = f"mixgrpo compare flux-nano --methods {' '.join(names)} --seeds {seeds} --iterations 30 --eval.every 5"
    return write_comparison(
        folder,
        courses,
        titles={name: sketch.title for name, sketch in SKETCHES.items()},
        settings=("--iterations", "30", "--eval.every", "5"),
        sessions=(
            Session(begun=START, command=line, budget_minutes=60.0, ended=START + 3600, reason="budget"),
            Session(
                begun=START + 7200,
                command="mixgrpo compare --resume runs/compare-flux-nano",
                ended=START + 9900,
                reason="interrupted" if unfinished else "finished",
            ),
        ),
    )


if __name__ == "__main__":
    print(write_large(Path(sys.argv[1]), unfinished="--unfinished" in sys.argv))
