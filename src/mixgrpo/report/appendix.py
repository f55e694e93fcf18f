"""The end of the page: all evaluations, all settings, versions, and the commands to go on."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from mixgrpo.report.alarms import history
from mixgrpo.report.exported import loading_code
from mixgrpo.report.health import ENDS
from mixgrpo.report.read import Run
from mixgrpo.report.samplers import sampler_window, steps_in_words
from mixgrpo.report.summary import Summary, estimate, mean_of, reward_weights
from mixgrpo.report.text import change, count, decimal, duration, is_share, moment, value


def evaluation_table(run: Run, summary: Summary) -> str:
    """Return every evaluation in figures, and what alarm held after it, folded away."""
    if not summary.evals:
        return ""
    names = [figure.name for figure in summary.figures]
    measured = any(math.isfinite(row.diversity) for row in summary.evals)
    head = "".join(f"<th>{escape(name)}</th>" for name in [*names, *(["diversity"] if measured else [])])
    told = {iteration: found for iteration, found in history(run) if found}
    rows: list[str] = []
    for row in summary.evals:
        cells = ""
        for name in names:
            share, figure = is_share(name), estimate(row, name)
            error = change(figure.error, share=share).removeprefix("+").removesuffix(" points")
            cells += f"<td>{value(figure.mean, share=share)}<small> ± {error}</small></td>"
        cells += f"<td>{value(row.diversity)}</td>" if measured else ""
        mark = " <small>best</small>" if row is summary.best else ""
        mark += " <small>alarm</small>" if row.iteration in told else ""
        rows.append(
            f"<tr><th>{row.iteration}{mark}</th><td>{duration(row.elapsed)}</td><td>{escape(row.weights)}</td>{cells}</tr>"
        )
    return (
        '<details><summary>All evaluations in figures</summary><div class="scroll"><table class="figures">'
        f"<thead><tr><th>iteration</th><th>running time</th><th>weights</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def reward_table(run: Run) -> str:
    """Return what training saw of each reward over the last iterations; nothing where there is only one."""
    names = list(dict.fromkeys(name for row in run.train for name in row.rewards))
    latest = run.train[-ENDS:]
    if len(names) < 2:
        return ""
    prompts, group = run.setting("prompts_per_iteration"), run.setting("rollout.group_size")
    samples = prompts * group if isinstance(prompts, int) and isinstance(group, int) else 0
    rows: list[str] = []
    for name in names:
        stats = [row.rewards[name] for row in latest if name in row.rewards]
        share = mean_of([one.advantage_share for one in stats])
        failed = mean_of([float(one.failed) for one in stats])
        cells = (
            f"{reward_weights(run).get(name, math.nan):g}",
            value(mean_of([one.mean for one in stats])),
            value(mean_of([one.group_std for one in stats])),
            value(share, share=True),
            value(failed / samples, share=True) if samples else decimal(failed),
        )
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    heads = ("weight", "mean", "spread in a group", "share of advantages", "not scored")
    return (
        '<h3 class="part">Rewards in training</h3>'
        f'<p class="quiet">Means over the last {count(len(latest), "iteration")}.</p><div class="scroll">'
        f'<table class="figures"><thead><tr><th></th>{"".join(f"<th>{head}</th>" for head in heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def sampler_table(run: Run, summary: Summary) -> str:
    """Return the last evaluation's figures by both samplers and the gap; nothing where only one was used."""
    last = summary.last
    if last is None or not last.training_figures:
        return ""
    rows: list[str] = []
    for name in (figure.name for figure in summary.figures):
        if name not in last.training_figures:
            continue
        share, ode = is_share(name), estimate(last, name)
        noisy = last.training_figures[name]
        error = math.hypot(ode.error, last.training_errors.get(name, math.nan))
        spread = change(error, share=share).removeprefix("+").removesuffix(" points")
        rows.append(
            f"<tr><th>{escape(name)}</th><td>{value(ode.mean, share=share)}</td><td>{value(noisy, share=share)}</td>"
            f"<td>{change(ode.mean - noisy, share=share)}<small> ± {spread}</small></td></tr>"
        )
    steps = steps_in_words([sampler_window(run, last)])
    noise = f", with noise in {'steps' if ' ' in steps else 'step'} {steps}" if steps not in ("", "none") else ""
    return (
        '<h3 class="part">Two samplers</h3>'
        f'<p class="quiet">The held-out prompts after iteration {last.iteration}, drawn '
        f"by ODE sampling and as training draws its samples{noise}, from the same starting noise. The gap is what the "
        "model has only under one of them; its error is that of two independent means, so larger than its own.</p>"
        '<div class="scroll"><table class="figures"><thead><tr><th></th><th>ODE</th><th>training sampler</th>'
        f"<th>gap</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def settings_section(run: Run) -> str:
    """Return the commands, the prompts, the versions and the resolved config."""
    return _commands(run) + _prompts(run) + _sessions(run) + _settings(run)


def prompts_in_words(run: Run) -> list[tuple[str, str]]:
    """Return what was trained on and what was held out, as (what, how many from where); nothing in older runs.

    Of a path on this machine only the file's name is told.
    """
    counted = run.sessions[-1].prompts if run.sessions else ()
    lines: list[tuple[str, str]] = []
    for what, found in zip(("prompts trained on", "prompts held out"), counted, strict=False):
        source = Path(found.source).name if Path(found.source).is_absolute() else found.source
        of = "of the same source" if source.startswith("split:") else f"from {source}"
        left = f"; {count(found.left_out, 'empty or double line')} left out" if found.left_out else ""
        cut = f"; {found.cut:,} longer than the text encoder reads, cut" if found.cut else ""
        lines.append((what, f"{found.prompts:,} {of}{left}{cut}"))
    return lines


def _prompts(run: Run) -> str:
    items = "".join(
        f"<dt>{escape(what.capitalize())}</dt><dd>{escape(text)}</dd>" for what, text in prompts_in_words(run)
    )
    return f'<dl class="commands">{items}</dl>' if items else ""


def _commands(run: Run) -> str:
    folder = shlex.quote(str(run.path))
    commands = []
    if run.ending is None or run.ending.reason != "finished":
        commands.append(("Go on from the last checkpoint", f"mixgrpo train --resume {folder}"))
    commands.append(
        (
            "Run it again with the same settings",
            f"mixgrpo train {shlex.quote(str(run.path / 'resolved.json'))}",
        )
    )
    commands.append(("Write this page anew", f"mixgrpo report {folder}"))
    if run.export is not None:
        code = loading_code(run.export, str(run.path / "export"), prompt=run.prompts[0] if run.prompts else "a prompt")
        commands.append(("Draw with the result", "\n".join(code)))
    items = "".join(f"<dt>{escape(title)}</dt><dd><code>{escape(text)}</code></dd>" for title, text in commands)
    return f'<dl class="commands">{items}</dl>'


def _sessions(run: Run) -> str:
    rows: list[str] = []
    for number, session in enumerate(run.sessions, start=1):
        origin = "start" if session.resumed_from is None else f"resumed at iteration {session.resumed_from}"
        versions = ", ".join(f"{name} {version}" for name, version in session.versions.items())
        rows.append(
            f"<tr><th>{number}</th><td>{escape(origin)}</td><td>{moment(session.start)}</td>"
            f"<td>{duration(session.stop - session.start)}</td><td>{escape(versions)}</td></tr>"
        )
    if not rows:
        return ""
    return (
        '<div class="scroll"><table class="sessions"><thead><tr><th>session</th><th>from</th><th>begun</th>'
        f"<th>lasted</th><th>with</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _settings(run: Run) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in flatten(run.config))
    return f'<details><summary>All settings (resolved.json)</summary><table class="settings">{rows}</table></details>'


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, value) for every setting, in the order of the file."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for number, inner in enumerate(value):
            yield from flatten(inner, f"{prefix}.{number}")
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
