"""The training sampler of an evaluation. It draws as the next iteration does, so its noise moves with the window."""

from collections.abc import Iterable

from mixgrpo.report.read import Run
from mixgrpo.report.rows import EvalRow


def sampler_window(run: Run, evaluation: EvalRow) -> range | None:
    """Return the stochastic steps of the training sampler at an evaluation; None where the log does not say.

    They are those of the iteration that follows, after the last iteration those of the last; none with kernel `ode`.
    """
    if run.setting("rollout.kernel") == "ode":
        return range(0)
    planned = run.setting("iterations")
    last = planned - 1 if isinstance(planned, int) else evaluation.iteration
    iteration = min(evaluation.iteration, last)
    return next((row.window for row in run.train if row.iteration == iteration), None)


def is_one_sampler(windows: Iterable[range | None]) -> bool:
    """Say whether evaluations are known to be of one training sampler; otherwise they do not show a change."""
    found = set(windows)
    return len(found) == 1 and None not in found


def steps_in_words(windows: Iterable[range | None]) -> str:
    """Return "4 to 5", "1 to 2 or 3 to 4" where windows differ, "none" without noise; nothing where unknown."""
    known = sorted({(window.start, window.stop - 1) for window in windows if window is not None})
    spans = [str(start) if start == last else f"{start} to {last}" if start < last else "none" for start, last in known]
    return " or ".join(spans)
