"""A generator of run folders that look like real ones: the same files, rows and small pictures, made in a second."""

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFilter, ImageFont

START = 1_760_000_000.0
COLORS = {"red": (204, 24, 36), "white": (244, 244, 244), "blue": (36, 72, 208), "yellow": (248, 208, 40)}
COLORS |= {"black": (16, 16, 16), "green": (20, 140, 60)}
WORDS = ["RIVER", "STONE", "LAMP", "GARDEN", "FOX", "WINTER", "CLOUD", "BREAD"]


@dataclass
class FakeRun:
    """A run to write: what differs from test to test."""

    iterations: int = 60
    num_steps: int = 10
    window: int = 3
    interval: int = 6
    group_size: int = 12
    prompts: int = 10
    eval_every: int = 10
    evaluated: bool = True
    reason: str | None = "finished"
    falling: bool = False
    kl: bool = False
    failures: bool = False
    collapse: bool = False
    constant_lr: bool = False
    sampler_gap: float | None = None
    peak_memory: int | None = None
    """Bytes that the first iteration takes; each one after it takes 64 MiB more."""
    judge: float | None = None
    """What a reward that scores held-out pictures only gains until the end; None: there is none."""
    picture: tuple[int, int] = (96, 32)
    prompts_shown: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolved.json").write_text(json.dumps(self.config(), indent=2))
        self.rows = self.make_rows()
        write_rows(folder, self.rows)
        if self.evaluated:
            self.write_samples(folder / "samples")
            self.write_checkpoints(folder)
        return folder

    def config(self) -> dict[str, Any]:
        return {
            "name": "flux-nano-mixgrpo",
            "description": "MixGRPO on the bundled flux-nano: OCR and colours, on a laptop CPU.",
            "seed": 0,
            "iterations": self.iterations,
            "prompts_per_iteration": self.prompts,
            "model": {
                "path": "flux-nano",
                "height": self.picture[1],
                "width": self.picture[0],
                "guidance_scale": 3.5,
            },
            "prompts": {"train": "nano-train", "heldout": "nano-heldout"},
            "rollout": {
                "num_steps": self.num_steps,
                "shift": 3.0,
                "kernel": "flow_sde",
                "eta": 0.7,
                "group_size": self.group_size,
                "noise_spread": 0.0,
                "tail_ratio": 1.0,
            },
            "window": {
                "type": "sliding",
                "size": self.window,
                "stride": 1,
                "interval": self.interval,
                "after_last": "restart",
            },
            "rewards": [
                {"name": "ocr", "use": "", "weight": 1.0, "timeout": 60.0, "options": {}},
                {"name": "colors", "use": "", "weight": 0.5, "timeout": 60.0, "options": {}},
                {"name": "jpeg", "use": "", "weight": 0.0, "timeout": 60.0, "options": {"quality": 90}},
                *([] if self.judge is None else [{"name": "tesseract", "weight": 0.0, "evaluation_only": True}]),
            ],
            "loss": {"clip_range": 1e-3, "updates_per_iteration": 1},
            "optim": {"lr": 1.5e-4, "max_grad_norm": 1.0, "ema_decay": 0.9},
            "lora": {"rank": 0, "target_modules": []},
            "eval": {"every": self.eval_every, "num_prompts": 256, "num_steps": 10, "best": "ocr"},
            "guard": {"max_failed_rewards": 0.5},
        }

    def make_rows(self) -> list[dict[str, Any]]:
        rng = random.Random(0)
        time = START
        rows: list[dict[str, Any]] = [
            {
                "kind": "start",
                "time": time,
                "version": "0.1.0",
                "torch": "2.13.0+cpu",
                "python": "3.11.7",
                "machine": "Linux x86_64, 2 threads",
                "trained_parameters": 5_100_000,
                "resumed_from": None,
            }
        ]
        time += 4.0
        best = -1.0
        for iteration in range(self.iterations + 1):
            due = iteration % self.eval_every == 0 or iteration == self.iterations
            if self.evaluated and due:
                time += 6.3
                row = self.eval_row(iteration, time, rng)
                row["best"] = row["rewards"]["ocr"] > best
                if self.sampler_gap is not None:
                    row["training_sampler"] = {
                        "rewards": {"ocr": row["rewards"]["ocr"] - self.sampler_gap},
                        "details": {},
                        "standard_errors": {"ocr": 0.02},
                    }
                if self.judge is not None:
                    row["rewards"]["tesseract"] = 0.6 + self.judge * iteration / self.iterations
                    row["details"]["tesseract/exact"] = 0.3 + self.judge * iteration / self.iterations
                    row["standard_errors"] |= {"tesseract": 0.02, "tesseract/exact": 0.03}
                    row["failed"]["tesseract"] = 0
                best = max(best, row["rewards"]["ocr"])
                rows.append(row)
            if iteration < self.iterations:
                row = self.train_row(iteration, rng)
                time += row["seconds"] + 0.05
                rows.append({**row, "time": time})
        if self.reason:
            rows.append({"kind": "end", "iteration": self.iterations, "time": time + 1.0, "reason": self.reason})
        return rows

    def progress(self, iteration: int) -> float:
        rise = 1 - math.exp(-iteration / 25)
        fall = max(0.0, iteration - 40) / 60 if self.falling else 0.0
        return rise - 2.2 * fall

    def eval_row(self, iteration: int, time: float, rng: random.Random) -> dict[str, Any]:
        up = self.progress(iteration)
        return {
            "kind": "eval",
            "iteration": iteration,
            "time": time,
            "seconds": 6.2,
            "weights": "average",
            "num_prompts": 256,
            "rewards": {
                "ocr": 0.573 + 0.19 * up + rng.gauss(0, 0.006),
                "colors": 0.962 + rng.gauss(0, 0.004),
                "jpeg": -2.31 + 0.05 * up,
            },
            "details": {"ocr/exact": 0.27 + 0.34 * up + rng.gauss(0, 0.012)},
            "standard_errors": {"ocr": 0.0194, "colors": 0.0075, "jpeg": 0.025, "ocr/exact": 0.0301},
            "failed": {"ocr": 2 * int(self.failures), "colors": 0, "jpeg": 0},
            "best": False,
        }

    def train_row(self, i: int, rng: random.Random) -> dict[str, Any]:
        up = 1 - math.exp(-i / 25)
        start = (i // self.interval) % (self.num_steps - self.window)
        steps = range(start, start + self.window)
        shared = start + 1
        group_std = 0.2 * (math.exp(-i / 8) if self.collapse else 1 - 0.25 * up)
        clip = [abs(rng.gauss(0.02 + 0.01 * (s - start), 0.01)) for s in steps]
        failed = rng.choice([0, 0, 0, 3]) if self.failures else 0
        seconds = 4.9 + rng.gauss(0, 0.15)
        row: dict[str, Any] = {
            "kind": "train",
            "iteration": i,
            "time": 0.0,
            "seconds": seconds,
            "window": [start, start + self.window],
            "lr": 1.5e-4 * (1.0 if self.constant_lr else 0.5 * (1 + math.cos(math.pi * i / self.iterations))),
            "rewards": {
                "ocr": {
                    "mean": 0.55 + 0.2 * up + rng.gauss(0, 0.03),
                    "std": 0.31,
                    "group_std": group_std,
                    "failed": failed,
                },
                "colors": {
                    "mean": 0.95 + rng.gauss(0, 0.01),
                    "std": 0.12,
                    "group_std": 0.06 + rng.gauss(0, 0.006),
                    "failed": 0,
                },
                "jpeg": {"mean": -2.3 + 0.06 * up, "std": 0.4, "group_std": 0.1, "failed": 0},
            },
            "details": {"ocr/exact": 0.25 + 0.36 * up + rng.gauss(0, 0.03)},
            "advantage_abs_mean": 0.74,
            "ratio_mean": 1 + rng.gauss(0, 4e-5),
            "ratio_max": 1 + abs(rng.gauss(1.2e-3, 4e-4)),
            "clip_fraction": sum(clip) / len(clip),
            "loss": rng.gauss(0, 1e-4),
            "grad_norm": abs(rng.gauss(0.35, 0.1)),
            "skipped_updates": int(self.failures and i == 5),
            "skipped_groups": rng.choice([0, 0, 1]),
            "steps": {
                str(s): {"ratio_mean": 1 + rng.gauss(0, 5e-5), "clip_fraction": c}
                for s, c in zip(steps, clip, strict=True)
            },
            "calls": {
                "sampling": shared / self.group_size + self.num_steps - shared,
                "update": 1 / self.group_size + self.window - 1,
            },
            "timing": {
                "sample": 0.56 * seconds,
                "update": 0.43 * seconds,
                "model": 0.81 * seconds,
                "decode": 0.03 * seconds,
                "encode": 0.02 * seconds,
                "score_wait": 0.09 * seconds,
                "other": 0.05 * seconds,
            },
        }
        if self.peak_memory is not None:
            row["peak_memory"] = self.peak_memory + 2**26 * i
        if self.kl:
            row["kl"] = 1e-5 * i
        return row

    def write_samples(self, folder: Path) -> None:
        prompts = self.prompts_shown or [
            f'the word "{word}" in {ink} on {ground}'
            for word, (ink, ground) in zip(
                WORDS,
                [("red", "white"), ("blue", "yellow"), ("white", "black"), ("green", "white")] * 2,
                strict=True,
            )
        ]
        evals = [row for row in self.rows if row["kind"] == "eval"]
        sheets: list[dict[str, Any]] = []
        for row in evals:
            files: list[str] = []
            for number, prompt in enumerate(prompts):
                file = folder / f"{row['iteration']:06d}" / f"{number:03d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                draw(prompt, self.picture, row["details"]["ocr/exact"], number).save(file)
                files.append(str(file.relative_to(folder)))
            sheets.append({"iteration": row["iteration"], "files": files})
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.json").write_text(json.dumps({"prompts": prompts, "sheets": sheets}))

    def write_checkpoints(self, folder: Path) -> None:
        best = next((row["iteration"] for row in reversed(self.rows) if row.get("best")), 0)
        checkpoints = folder / "checkpoints"
        checkpoints.mkdir()
        (checkpoints / "best.txt").write_text(f"step-{best:06d}\n")
        (checkpoints / "last.txt").write_text(f"step-{self.iterations:06d}\n")
        (folder / "export").mkdir()
        marker = {"version": "0.1", "base": "flux-nano", "run": "fake", "step": f"step-{best:06d}"}
        (folder / "export" / "mixgrpo.json").write_text(json.dumps(marker | {"pipeline": "FluxPipeline"}))


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["kind"] == kind]


def draw(prompt: str, size: tuple[int, int], skill: float, number: int) -> Image.Image:
    """Draw the word of a prompt; the less the skill, the more letters are wrong and the more they are blurred."""
    rng = random.Random(number)
    word = prompt.split('"')[1] if prompt.count('"') == 2 else "WORD"
    names = [name for name in prompt.split() if name in COLORS]
    ink, ground = (COLORS[name] for name in (names if len(names) == 2 else ["black", "white"]))
    letters = "".join(c if rng.random() < 0.45 + skill else rng.choice("BEKMRSTX") for c in word)
    image = Image.new("RGB", size, ground)
    scale = size[1] / 32
    font = ImageFont.load_default(size=19 * scale)
    ImageDraw.Draw(image).text((size[0] / 2, size[1] / 2), letters, fill=ink, font=font, anchor="mm")
    return image.filter(ImageFilter.GaussianBlur(max(0.0, 0.9 - skill) * scale))
