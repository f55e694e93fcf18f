"""Rules across fields: each refuses what it must, in words that help, and not its nearest valid neighbour."""

from typing import Any

import pytest
from pydantic import ValidationError

from mixgrpo.config.presets import overlaid
from mixgrpo.config.schema import Config

ODE = {"kernel": "ode", "noise_spread": 0.3}
NEIGHBOR = {"type": "neighbor", "micro_batch": 8, "anchors": 4}
NFT = {"type": "nft", "micro_batch": 8}
AWM = {"type": "awm", "micro_batch": 8}
JUDGED = [{"name": "brightness"}, {"name": "jpeg", "weight": 0.0, "evaluation_only": True}]
ALL_STEPS = {"type": "all"}


def settings(**sections: Any) -> dict[str, Any]:
    """A valid run with 8 steps, 6 samples of 4 prompts; a section with another `type` replaces the whole of it."""
    base: dict[str, Any] = {
        "name": "rules",
        "iterations": 4,
        "prompts_per_iteration": 4,
        "model": {"path": "toy", "height": 8, "width": 8},
        "prompts": {"train": "toy", "heldout": "toy"},
        "rollout": {"num_steps": 8, "group_size": 6, "micro_batch": 8},
        "window": {"type": "sliding", "size": 2},
        "rewards": [{"name": "brightness"}],
        "loss": {"type": "grpo", "micro_batch": 8},
        "optim": {"lr": 1e-3},
        "eval": {"num_steps": 4},
    }
    return overlaid(base, sections)


def neighbor(**sections: Any) -> dict[str, Any]:
    return overlaid(settings(rollout=ODE, loss=NEIGHBOR), sections)


RULES: dict[str, tuple[dict[str, Any], list[str], dict[str, Any]]] = {
    "one trained step too many": (
        settings(window={**ALL_STEPS, "num_trained": 8}),
        ["window.num_trained (8)", "at most 7", "rollout.num_steps = 8", "sigma 0"],
        settings(window={**ALL_STEPS, "num_trained": 7}),
    ),
    "no step to compress before the window": (
        settings(window=ALL_STEPS, rollout={"head_ratio": 0.5}),
        ["rollout.head_ratio must be 1", "window.type 'all'"],
        settings(window=ALL_STEPS, rollout={"head_ratio": 1.0}),
    ),
    "no step to compress after the window": (
        settings(window=ALL_STEPS, rollout={"tail_ratio": 0.5}),
        ["rollout.tail_ratio must be 1", "window.type 'all'"],
        settings(rollout={"tail_ratio": 0.5}),
    ),
    "a compressed head without a stochastic step": (
        settings(loss=NFT, rollout={**ODE, "head_ratio": 0.5}),
        ["rollout.head_ratio must be 1", "rollout.kernel 'ode'", "rollout.num_steps"],
        settings(loss=NFT, rollout={"head_ratio": 0.5}),
    ),
    "a compressed tail without a stochastic step": (
        settings(loss=NFT, rollout={**ODE, "tail_ratio": 0.5}),
        ["rollout.tail_ratio must be 1", "rollout.kernel 'ode'"],
        settings(loss=NFT, rollout={**ODE, "tail_ratio": 1.0}),
    ),
    "a group of one picture": (
        settings(loss=NFT, rollout={"kernel": "ode"}),
        ["rollout.noise_spread must be above 0", "Neighbor GRPO takes 0.3, DiffusionNFT 1"],
        settings(loss=NFT, rollout={"kernel": "ode", "noise_spread": 1e-3}),
    ),
    "grpo without a stochastic step": (
        settings(rollout=ODE),
        ["loss.type 'grpo' needs a stochastic step", "flow_sde, dance_sde, cps or gddim", "neighbor, nft, awm"],
        settings(rollout={"noise_spread": 0.3}),
    ),
    "neighbours with stochastic steps": (
        settings(loss=NEIGHBOR, rollout={"noise_spread": 0.3}),
        ["loss.type 'neighbor'", "set rollout.kernel = 'ode'", "'flow_sde'"],
        neighbor(),
    ),
    "more anchors than members": (
        neighbor(loss={"anchors": 7}),
        ["loss.anchors (7)", "at most rollout.group_size (6)"],
        neighbor(loss={"anchors": 6}),
    ),
    "neighbours in parts of groups": (
        neighbor(loss={"updates_per_iteration": 2}),
        ["loss.update_split must be 'prompts'", "whole groups"],
        neighbor(loss={"updates_per_iteration": 2, "update_split": "prompts"}),
    ),
    "neighbours of extremes": (
        neighbor(advantages={"extremes": 1}),
        ["advantages.extremes and advantages.threshold must be 0", "loss.anchors"],
        neighbor(advantages={"extremes": 0}),
    ),
    "neighbours above a threshold": (
        neighbor(advantages={"threshold": 0.1}),
        ["advantages.extremes and advantages.threshold must be 0"],
        neighbor(advantages={"threshold": 0.0, "quasi_norm": 0.8}),
    ),
    "more extremes than members": (
        settings(advantages={"extremes": 4}),
        ["advantages.extremes (4)", "at most half of rollout.group_size, 3"],
        settings(advantages={"extremes": 3}),
    ),
    "a threshold that no advantage passes": (
        settings(advantages={"threshold": 2.0, "clip": 2.0}),
        ["advantages.threshold (2)", "below advantages.clip (2)"],
        settings(advantages={"threshold": 1.99, "clip": 2.0}),
    ),
    "a judge that picks the checkpoint": (
        settings(rewards=JUDGED, eval={"best": "jpeg"}),
        ["eval.best is 'jpeg'", "evaluation_only", "no independent one"],
        settings(rewards=JUDGED, eval={"best": "brightness"}),
    ),
    "too strong a rotation": (
        settings(rollout={"kernel": "cps", "eta": 1.01}),
        ["rollout.eta is 1.01", "at most 1"],
        settings(rollout={"kernel": "cps", "eta": 1.0}),
    ),
    "a formula of another order": (
        settings(rollout={"tail_variant": "corrected", "tail_order": 2}),
        ["rollout.tail_order is 2", "set rollout.tail_order = 3"],
        settings(rollout={"tail_variant": "corrected", "tail_order": 3}),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_refuses_what_it_must_and_says_why(rule: str) -> None:
    wrong, parts, _ = RULES[rule]
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(wrong)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_lets_the_nearest_valid_settings_pass(rule: str) -> None:
    Config.model_validate(RULES[rule][2])


@pytest.mark.parametrize("loss", [NFT, AWM])
@pytest.mark.parametrize("rollout", [{}, {"noise_spread": 1.0}, {"kernel": "ode", "noise_spread": 1.0}])
def test_losses_on_the_forward_process_take_samples_of_any_solver(
    loss: dict[str, Any], rollout: dict[str, Any]
) -> None:
    Config.model_validate(settings(loss=loss, rollout=rollout))


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("loss", {"clip_range": 0.0}),
        ("loss", {"max_divergence": 0.0}),
        ("loss", {"ratio": "normalized"}),
        ("loss", {"step_weights": "std"}),
        ("loss", {"trust_region": "mask"}),
        ("loss", {"kl_weight": -0.1}),
        ("loss", {**NEIGHBOR, "temperature": 0.0}),
        ("loss", {**NEIGHBOR, "anchors": 0}),
        ("loss", {**NFT, "beta": 0.0}),
        ("loss", {**NFT, "advantage_scale": 0.0}),
        ("loss", {**NFT, "old_decay_rate": -0.1}),
        ("loss", {**NFT, "old_decay_max": 1.0}),
        ("loss", {**NFT, "clip_range": 0.1}),
        ("loss", {**AWM, "clip_range": 0.0}),
        ("advantages", {"quasi_norm": -0.1}),
        ("advantages", {"extremes": -1}),
        ("advantages", {"threshold": -0.1}),
        ("advantages", {"std": "global"}),
        ("rollout", {"noise_spread": 1.01}),
        ("rollout", {"noise_spread": -0.01}),
        ("rollout", {"head_ratio": 0.0}),
        ("rollout", {"head_ratio": 1.01}),
        ("window", {"type": "random", "size": 2, "reach": 0.0}),
        ("window", {"type": "random", "size": 2, "reach": 1.01}),
        ("window", {"type": "all", "num_trained": -1}),
        ("window", {"type": "all", "choice": "last"}),
    ],
)
def test_values_outside_their_range_are_refused(section: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(settings(**{section: values}))
    assert len(caught.value.errors()) == 1
    location = [str(part) for part in caught.value.errors()[0]["loc"]]
    assert location[0] == section
    assert location[-1] in values
