"""The diversity of a prompt's images: on known patterns, and in runs, where it must change nothing else."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import HELDOUT
from torch import Tensor

from mixgrpo.config.schema import Config
from mixgrpo.flow.noise import Noise
from mixgrpo.flow.plan import ode_plan
from mixgrpo.flow.rollout import rollout
from mixgrpo.models import FlowModel
from mixgrpo.train.diversity import diversity, measure_diversity, scale_down
from mixgrpo.train.export import load_run_model
from mixgrpo.train.loop import train


def _flat(*grays: float) -> Tensor:
    return torch.stack([torch.full((3, 8, 8), gray) for gray in grays])


def test_images_that_are_one_have_none() -> None:
    image = torch.rand(3, 40, 70, generator=torch.Generator().manual_seed(0))
    assert diversity(scale_down(image.expand(2, 4, 3, 40, 70))) == 0.0


def test_black_and_white_are_as_far_apart_as_can_be() -> None:
    assert diversity(_flat(0.0, 1.0)[None]) == pytest.approx(1.0)


def test_known_patterns() -> None:
    """Grays 0, 0.2, 0.6 lie 0.2, 0.4 and 0.6 apart; one of three colours at 1 is sqrt(1/3) from black."""
    grays, red = _flat(0.0, 0.2, 0.6), _flat(0.0, 0.0, 0.0)
    red[0, 0] = 1.0
    first, second = 0.4, 2 / 3 * math.sqrt(1 / 3)
    assert diversity(torch.stack([grays, red])) == pytest.approx((first + second) / 2, abs=1e-7)


def test_frames_of_videos_count_alike() -> None:
    """Two videos that differ by 0.3 in one of four frames: sqrt(0.09 / 4)."""
    videos = torch.zeros(1, 2, 4, 3, 8, 8)
    videos[0, 1, 2] = 0.3
    assert diversity(scale_down(videos)) == pytest.approx(0.15)


def test_areas_are_averaged_and_what_is_finer_does_not_count() -> None:
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    by_hand = image.reshape(2, 3, 32, 2, 32, 3).mean((3, 5))
    torch.testing.assert_close(scale_down(image), by_hand)
    assert torch.equal(scale_down(image[..., :20, :30]), image[..., :20, :30]), "nothing is scaled up"
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    boards = torch.stack([board, 1 - board]).float().expand(3, 2, 64, 64).transpose(0, 1)
    assert diversity(scale_down(boards[None])) == pytest.approx(0.0, abs=1e-7)


def test_images_of_a_prompt_are_compared_with_each_other_only() -> None:
    def draw(prompts: Any) -> Any:
        assert prompts == ["dark", "dark", "light", "light"]
        yield range(3), _flat(0.0, 0.1, 0.8)
        yield range(3, 4), _flat(1.0)

    assert measure_diversity(draw, ["dark", "light"], 2) == pytest.approx(0.15)


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _evals(run: Path) -> list[dict[str, Any]]:
    return [row for row in _rows(run) if row["kind"] == "eval"]


def _by_hand(model: FlowModel) -> float:
    """Draw 3 images for each of 2 prompts and compare them pair by pair."""
    texts = [text for text in HELDOUT[:2] for _ in range(3)]
    conditioning = model.encode(texts)
    trajectory = rollout(
        lambda x, sigma, row: model.velocity(x, sigma, conditioning.take(row)),
        ode_plan(4, 3.0),
        Noise(1000, -1, model.latent_shape),
        kernel=None,
        prompts=range(6),
        group_size=1,
        micro_batch=6,
    )
    images = model.decode(trajectory.x0[:, 0]).double()
    pairs = [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5)]
    return sum((images[i] - images[j]).square().mean().sqrt().item() for i, j in pairs) / len(pairs)


def test_the_figure_of_a_run_is_that_of_independent_noises_by_hand(
    tmp_path: Path, tiny_model: FlowModel, make_config: Callable[..., Config]
) -> None:
    settings = {"diversity_prompts": 2, "diversity_samples": 3}
    train(make_config(iterations=1, optim={"lr": 1e-2}, eval=settings), tmp_path / "run")
    first, last = _evals(tmp_path / "run")
    assert first["diversity"] == pytest.approx(_by_hand(tiny_model), rel=1e-4)
    assert last["diversity"] == pytest.approx(_by_hand(load_run_model(tmp_path / "run", "last")), rel=1e-4)
    assert first["diversity"] != last["diversity"]


def test_all_other_figures_are_the_same_bit_for_bit_with_and_without(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    rows = []
    for number in (0, 3):
        run = tmp_path / str(number)
        train(make_config(iterations=2, eval={"diversity_prompts": number, "every": 1}), run)
        rows.append(_rows(run))
        assert [("diversity" in row) for row in _evals(run)] == [number > 0] * 3
    moving = {"time", "seconds", "timing", "diversity", "peak_memory"}
    plain, measured = ([{k: v for k, v in row.items() if k not in moving} for row in part] for part in rows)
    assert plain == measured
