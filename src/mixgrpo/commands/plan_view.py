"""How a plan looks in a terminal: the window's way through the run, and the sigmas."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from mixgrpo.config.schema import Config
from mixgrpo.config.sections import RolloutConfig
from mixgrpo.data.sets import prompt_lines
from mixgrpo.flow.plan import TrajectoryPlan
from mixgrpo.flow.sigmas import shifted_sigmas
from mixgrpo.rl.window import trained_steps
from mixgrpo.train.console import speaks_unicode
from mixgrpo.train.settings import make_window

if TYPE_CHECKING:
    from mixgrpo.commands.plan import Stretch

_LABEL = 13
"""Columns before the chart: step number and sigma."""
_SHADES = "░▒▓█"
_NOISY, _TRUNK, _HEAD, _ODE, _TAIL = "~─=·:"
"""Steps that are not trained: stochastic, before the window, the same compressed, other ODE steps, a Flash tail."""
_ASCII = str.maketrans("░▒▓█─·", "o+*#-.")


def show_plan(
    config: Config, stretches: Sequence["Stretch"], console: Console, *, prompts: Mapping[str, Any] | None
) -> None:
    """Print what the run will do; `prompts` are `PromptSets.figures`, None where they are not known yet."""
    _print_heading(config, console)
    _print_prompts(config, prompts, console)
    _print_timeline(config, stretches, console)
    if min(config.rollout.tail_ratio, config.rollout.head_ratio) < 1.0:
        _print_tails(config, stretches, console)


def _print_heading(config: Config, console: Console) -> None:
    rollout, loss = config.rollout, config.loss
    console.print(Text(config.name, style="bold"))
    if config.description:
        console.print(Text(config.description, style="dim"))
    samples = config.prompts_per_iteration * rollout.group_size
    updates = "1 update" if loss.updates_per_iteration == 1 else f"{loss.updates_per_iteration} updates"
    console.print(
        f"{config.iterations} iterations of {config.prompts_per_iteration} prompts x {rollout.group_size} "
        f"samples = {samples}, {updates} each; {rollout.num_steps} steps, shift {rollout.shift:g}, "
        f"{_sampler(rollout)}; {_start(rollout)}"
    )


def _sampler(rollout: RolloutConfig) -> str:
    if rollout.kernel == "ode":
        return f"all of them deterministic, by {_solver(rollout)}"
    return f"{rollout.kernel} with eta {rollout.eta:g}"


def _solver(rollout: RolloutConfig) -> str:
    return "Euler" if rollout.tail_order == 1 else f"DPM-Solver++ of order {rollout.tail_order}"


def _start(rollout: RolloutConfig) -> str:
    if rollout.noise_spread == 0.0:
        return "a group starts from one noise"
    if rollout.noise_spread == 1.0:
        return "every sample starts from a noise of its own"
    return f"a group starts from neighbouring noises (spread {rollout.noise_spread:g})"


def _print_prompts(config: Config, figures: Mapping[str, Any] | None, console: Console) -> None:
    sources = {"prompts": config.prompts.train, "held out": config.prompts.heldout}
    unknown = [(label, "counted when the run starts") for label in sources]
    for label, words in unknown if figures is None else prompt_lines(figures):
        source = f" ({sources[label]})" if label in sources else ""
        console.print(Text(f"{label}{source}: {words}"))
    console.print()


def _print_timeline(config: Config, stretches: Sequence["Stretch"], console: Console) -> None:
    """Draw steps from top to bottom and iterations from left to right."""
    sigmas = shifted_sigmas(config.rollout.num_steps, config.rollout.shift)
    columns, repeat = _columns(config.iterations, max(10, console.width - _LABEL - 1))
    shares = [_trained_shares(config, iterations) for iterations in columns]
    windows = [_window_at(stretches, iterations.start) for iterations in columns]
    plain, drawn = not speaks_unicode(console), set[str]()
    console.print(Text("step  sigma  the window over the iterations", style="dim"))
    for step in range(config.rollout.num_steps):
        line = Text(f"{step:4d}  {sigmas[step]:5.3f}  ")
        for share, window in zip(shares, windows, strict=True):
            glyph, style = _cell(step, share[step], window, config.rollout)
            drawn.add(glyph)
            line.append((glyph.translate(_ASCII) if plain else glyph) * repeat, style=style)
        console.print(line, no_wrap=True)
    console.print(Text(" " * _LABEL + _axis(columns, repeat), style="dim"), no_wrap=True)
    console.print()
    for line in _legend(config, drawn):
        text = line.translate(_ASCII) if plain else line
        filled = textwrap.fill(text, console.width, initial_indent="  ", subsequent_indent="    ")
        console.print(Text(filled, style="dim"))
    console.print()


def _columns(iterations: int, width: int) -> tuple[list[range], int]:
    """Divide a run into columns of equally many iterations; a short run gets several characters for each."""
    size = -(-iterations // width)
    columns = [range(start, min(start + size, iterations)) for start in range(0, iterations, size)]
    return columns, max(1, min(4, width // len(columns)))


def _trained_shares(config: Config, iterations: range) -> list[float]:
    """Return the share of `iterations` that trains each step."""
    window, counts = make_window(config), [0] * config.rollout.num_steps
    for iteration in iterations:
        for step in trained_steps(window, iteration):
            counts[step] += 1
    return [count / len(iterations) for count in counts]


def _window_at(stretches: Sequence["Stretch"], iteration: int) -> range:
    return next(stretch.window for stretch in stretches if iteration in stretch.iterations)


def _cell(step: int, trained: float, window: range, rollout: RolloutConfig) -> tuple[str, str]:
    if trained > 0.0:
        return _SHADES[min(3, int(trained * 4))], "cyan"
    if rollout.kernel != "ode":  # without noise the window only says what is trained
        if step in window:
            return _NOISY, "cyan"
        if step < window.start:
            return (_HEAD if rollout.head_ratio < 1.0 else _TRUNK), "dim"
    return (_TAIL if rollout.tail_ratio < 1.0 else _ODE), "dim"


def _axis(columns: Sequence[range], repeat: int) -> str:
    """Return iteration numbers under the columns where they begin."""
    line = ""
    for column in range(0, len(columns), 10 if repeat == 1 else 5):
        line = line.ljust(column * repeat) + str(columns[column].start)
    return line


def _legend(config: Config, drawn: set[str]) -> list[str]:
    """Explain what was drawn, and nothing else."""
    rollout, solver = config.rollout, _solver(config.rollout)
    own_grid = f"of these steps, on a grid of its own, by {solver}"
    shared = ", one call for the whole group" if rollout.share_trunk and rollout.noise_spread == 0.0 else ""
    lines = {
        _NOISY: "stochastic, not trained",
        _TRUNK: f"ODE before it, by Euler{shared}",
        _HEAD: f"ODE before it, compressed: {rollout.head_ratio:.0%} {own_grid}{shared}",
        _ODE: "not trained" if rollout.kernel == "ode" else f"ODE after it, by {solver}",
        _TAIL: f"Flash tail: {rollout.tail_ratio:.0%} {own_grid}",
    }
    shades = "".join(shade for shade in _SHADES if shade in drawn)
    lighter = "" if shades == _SHADES[-1] else "; the darker, the more of the iterations of that column"
    return [
        f"{shades} {_TRAINED[config.loss.type]}{lighter}",
        *(f"{glyph} {words}" for glyph, words in lines.items() if glyph in drawn),
    ]


_TRAINED = {
    "grpo": "stochastic and trained",
    "neighbor": "trained, and deterministic like every step",
    "nft": "trained: finished samples, noised to this sigma",
    "awm": "trained: finished samples, noised to this sigma",
}
"""What a trained step is, by the type of the loss."""


def _print_tails(config: Config, stretches: Sequence["Stretch"], console: Console) -> None:
    """Print the sigmas that Flash really visits, at the first and the last position of the run."""
    shown = {stretch.window: stretch.plan for stretch in stretches}
    ends = sorted(shown, key=lambda window: window.start)
    for window in dict.fromkeys([ends[0], ends[-1]]):
        plan = shown[window]
        where = f" with the window at {window.start}-{window.stop - 1}" if plan.window else ""
        title = f"sigmas{where} ({plan.num_steps} steps): "
        console.print(Text(textwrap.fill(title + _sigma_list(plan), console.width, subsequent_indent="  ")))
    console.print()


def _sigma_list(plan: TrajectoryPlan) -> str:
    inside = range(plan.window.start, plan.window.stop)
    words = [f"{sigma:.3f}" for sigma in plan.sigmas]
    return " ".join(f"[{word}]" if step in inside else word for step, word in enumerate(words))
