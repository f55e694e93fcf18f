"""The top of the page: what was trained, how it ended, and what it brought."""

import math
from html import escape
from pathlib import Path

from mixgrpo.report.read import Run
from mixgrpo.report.rows import EvalRow
from mixgrpo.report.summary import Figure, Summary, mean_of, reward_weights
from mixgrpo.report.text import TIMES, amount, change, count, decimal, duration, listing, moment, value
from mixgrpo.report.timeline import num_steps

LINKS = ("pictures", "curves", "window", "cost", "health", "settings")


def page_header(run: Run, summary: Summary, title: str) -> str:
    """Return the title, what was trained on what and how long, and how it ended."""
    level, words = status(run)
    links = " ".join(f'<a href="#{name}">{name}</a>' for name in LINKS)
    description = run.setting("description")
    about = f'<p class="about">{escape(description)}</p>' if isinstance(description, str) and description else ""
    return (
        f'<header><p class="over">MixGRPO run</p><h1>{escape(title)}</h1>{about}'
        f'<p class="lede">{_lede(run)}</p><p class="status {level}">{escape(words)}</p><nav>{links}</nav></header>'
    )


def _lede(run: Run) -> str:
    model, rank = run.setting("model.path"), run.setting("lora.rank")
    if isinstance(model, str) and Path(model).is_absolute():
        model = Path(model).name
    rewards = [name for name, weight in reward_weights(run).items() if weight != 0]
    who = f"<b>{escape(str(model))}</b>" if model else "A model"
    what = f" post-trained on {escape(listing(rewards))}" if rewards else " post-trained"
    parts = [_window(run)]
    if isinstance(rank, int):
        parameters = run.sessions[-1].trained_parameters if run.sessions else 0
        trained = f" ({amount(parameters)} parameters)" if parameters else ""
        parts.insert(0, f"LoRA of rank {rank}{trained}" if rank else f"full fine-tuning{trained}")
    parts.append(_length(run))
    if run.sessions:
        parts.append(f'begun <span class="whole">{moment(run.sessions[0].start)}</span>')
    return f"{who}{what} with {method_name(run)}: {', '.join(part for part in parts if part)}."


_METHODS = {"neighbor": "Neighbor GRPO", "nft": "DiffusionNFT", "awm": "AWM"}
"""What a loss that is not GRPO's is called."""


def method_name(run: Run) -> str:
    """Return what the method is called that the settings look like."""
    flash, loss = run.setting("rollout.tail_ratio"), run.setting("loss.type")
    if isinstance(loss, str) and loss in _METHODS:
        return _METHODS[loss]
    if run.setting("window.type") == "all":
        return "GRPO"
    return "MixGRPO-Flash" if isinstance(flash, int | float) and flash < 1 else "MixGRPO"


def _window(run: Run) -> str:
    kind, size = run.setting("window.type"), run.setting("window.size")
    if run.setting("rollout.kernel") == "ode":
        trained = mean_of([float(len(row.trained)) for row in run.train])
        steps = f"{num_steps(run)} deterministic steps"
        return f"{decimal(trained, 0)} of {steps} trained" if run.train else steps
    if kind == "all":
        return f"all but the last of {num_steps(run)} steps stochastic"
    return escape(f"a {kind} window of {size} of {num_steps(run)} steps") if kind and size else ""


def _length(run: Run) -> str:
    done, planned = run.train[-1].iteration + 1 if run.train else 0, run.setting("iterations")
    words = f"{done:,} of {count(planned, 'iteration')}" if isinstance(planned, int) and planned != done else ""
    words = words or count(done, "iteration")
    prompts, group = run.setting("prompts_per_iteration"), run.setting("rollout.group_size")
    if isinstance(prompts, int) and isinstance(group, int):
        words += f" of {prompts} {TIMES} {group} samples"
    words += f" in {duration(run.seconds)}"
    return words + (f" over {len(run.sessions)} sessions" if len(run.sessions) > 1 else "")


def status(run: Run) -> tuple[str, str]:
    """Return how the run ended: a class of the style sheet and words."""
    end = run.ending
    if end is None:
        last = f" The last row was written {moment(run.sessions[-1].stop)}." if run.sessions else ""
        return "open", f"No end was recorded: the run is still going, or it was killed.{last}"
    if end.reason == "finished":
        return "good", f"Finished {moment(end.time)}."
    when = f"after {count(end.iteration, 'iteration')}, {moment(end.time)}"
    if end.reason == "interrupted":
        return "open", f"Interrupted {when}."
    return "bad", f"Stopped by itself {when}. {end.why}"


def headline_section(run: Run, summary: Summary, alarms: int, warnings: str = "") -> str:
    """Return the held-out figures before and after, below `warnings` about them."""
    if not summary.figures:
        content = '<p class="empty-note">No evaluation on held-out prompts yet.</p>'
    else:
        cards = "".join(_card(figure, summary) for figure in summary.figures)
        content = f'<div class="cards">{cards}</div><p class="quiet">{_explanation(run, summary)}</p>'
    alarm = ""
    if alarms:
        alarm = f'<p class="alarm"><a href="#health">{count(alarms, "alarm")} under Health</a></p>'
    return f'<section id="headline"><h2>Held-out prompts, before and after</h2>{warnings}{alarm}{content}</section>'


def _card(figure: Figure, summary: Summary) -> str:
    share = figure.is_share
    reward, _, detail = figure.name.partition("/")
    name = f"{escape(reward)} <small>{escape(_spoken(detail))}</small>" if detail else escape(reward)
    if detail:
        role = f"measured beside {escape(reward)}"
    elif figure.is_judge:
        role = "independent judge: no training ever saw it"
    elif math.isnan(figure.weight):
        role = ""
    else:
        role = f"trained, weight {figure.weight:g}" if figure.weight else "measured, not trained on"
    if summary.after is None:
        return (
            f'<div class="card"><h3>{name}</h3><p class="role">{role}</p>'
            f'<p class="big">{value(figure.before.mean, share=share)}</p><p class="from">{_before(summary)}, '
            "nothing after it yet</p></div>"
        )
    step = figure.change
    clear = math.isfinite(step.error) and abs(step.mean) > 2 * step.error
    css = ("up" if step.mean > 0 else "down") if clear and (share or not detail) else "flat"
    gain, error = change(step.mean, share=share), ""
    if math.isfinite(step.error):
        gain, error = gain.removesuffix(" points"), f" ± {change(step.error, share=share).removeprefix('+')}"
    last = ""
    if summary.last is not summary.after:
        last = f'<p class="from">last, {_iteration(summary.last)}: {value(figure.last.mean, share=share)}</p>'
    return (
        f'<div class="card"><h3>{name}</h3><p class="role">{role}</p>'
        f'<p class="big"><span>{value(figure.before.mean, share=share)}</span> <i>→</i> '
        f"{value(figure.after.mean, share=share)}</p>"
        f'<p class="change {css}">{gain}<span>{error}</span></p>{_scale(figure)}{last}</div>'
    )


def _spoken(detail: str) -> str:
    return {"exact": "exact match"}.get(detail, detail)


def _scale(figure: Figure) -> str:
    """Draw before and after on a line from 0 to 1, with error bars; nothing for figures that leave it."""
    before, after = figure.before, figure.after
    if not all(0 <= estimate.mean <= 1 for estimate in (before, after)):
        return ""
    parts = '<line class="axis" x1="6" x2="206" y1="10" y2="10"/>'
    parts += f'<line class="gain" x1="{_at(before.mean):.1f}" x2="{_at(after.mean):.1f}" y1="10" y2="10"/>'
    for estimate, css in ((before, "hollow"), (after, "full")):
        if math.isfinite(estimate.error):
            low, high = _at(estimate.mean - estimate.error), _at(estimate.mean + estimate.error)
            parts += f'<line class="error" x1="{low:.1f}" x2="{high:.1f}" y1="10" y2="10"/>'
        parts += f'<circle class="{css}" cx="{_at(estimate.mean):.1f}" cy="10" r="4.5"/>'
    top = "100 %" if figure.is_share else "1"
    return (
        f'<svg class="range" viewBox="0 0 212 30" aria-hidden="true">{parts}'
        f'<text x="6" y="28">0</text><text class="end" x="206" y="28">{top}</text></svg>'
    )


def _at(mean: float) -> float:
    return 6 + 200 * min(1.0, max(0.0, mean))


def _before(summary: Summary) -> str:
    return "before training" if summary.first else _iteration(summary.evals[0])


def _iteration(row: EvalRow | None) -> str:
    return f"iteration {row.iteration}" if row else ""


def _explanation(run: Run, summary: Summary) -> str:
    after, last = summary.after, summary.last
    number = f"{summary.num_prompts:,} held-out prompts" if summary.num_prompts else "The held-out prompts"
    words = f"{number}, the same noise every time, ODE sampling."
    if not summary.first:
        words += f" The first evaluation on record is {_iteration(summary.evals[0])}; it stands for “before”."
    if after is not None:
        average = ", with the moving average of the weights" if after.weights != "policy" else ""
        if summary.best is summary.evals[0]:
            words += f" No evaluation beat the first one; “after” is the last, {_iteration(after)}{average}."
        elif summary.best is None:
            words += f" “After” is the last evaluation, {_iteration(after)}{average}; none was marked as best."
        else:
            which = "the best and the last" if after is last else "the best, not the last"
            words += f" “After” is {which} evaluation, {_iteration(after)}{average}."
    if any(math.isfinite(figure.change.error) for figure in summary.figures):
        words += " ± is one standard error; that of a change takes before and after for independent,"
        words += " which usually overstates it."
    elif not summary.num_prompts:
        words += " How many prompts there were is not recorded, so no sampling error is given."
    checkpoint = f" Best checkpoint: <code>{escape(run.best_checkpoint)}</code>." if run.best_checkpoint else ""
    return escape(words) + checkpoint
