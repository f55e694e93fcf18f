"""What a run is between two iterations. Windows, noise and prompt order follow from (seed, iteration): no state."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class RunState:
    """The part of a run's state that is not a tensor."""

    iteration: int = 0
    """Iterations done; the next one to do."""
    updates: int = 0
    """Optimiser updates tried, skipped ones included; the learning rate is a function of it."""
    skipped_in_a_row: int = 0
    """Updates since the last good one that a non-finite loss or gradient cost."""
    best: float | None = None
    """Best held-out value so far."""
    best_iteration: int | None = None
    """Iteration of the best value."""
    reward_history: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Training means by reward, one per iteration; the guard against a collapse looks at them."""
    reward_spread: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Standard deviations of the samples that go with them. Checkpoints of older versions have none, so there it begins
    with the iteration that such a run was resumed at."""

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)
