"""Whether a run still makes progress, from when its files grew and how long its steps take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median

FIRST_STEP_SECONDS = 3600.0
LEAST_SECONDS = 600.0
STEPS = 20
_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Progress:
    """Times are seconds of the boot clock. `since` is when the watch began or the last sign of life came."""

    since: float
    step: int | None = None
    step_at: float | None = None
    durations: tuple[float, ...] = ()


def saw(progress: Progress, now: float, step: int | None = None) -> Progress:
    """Return the watch after a sign of life; `step` is the newest finished step, where it is known."""
    if step is None or (progress.step is not None and step <= progress.step):
        return replace(progress, since=now)
    durations = progress.durations
    if progress.step is not None and progress.step_at is not None:
        each = (now - progress.step_at) / (step - progress.step)
        durations = (*durations, each)[-_REMEMBERED:]
    return Progress(now, step, now, durations)


def limit(progress: Progress) -> float:
    """Return how many seconds without a sign of life are too many."""
    if progress.step is None:
        return FIRST_STEP_SECONDS
    if not progress.durations:
        return FIRST_STEP_SECONDS
    return max(LEAST_SECONDS, STEPS * median(progress.durations))


def is_stalled(progress: Progress, now: float) -> bool:
    """Tell whether the run has been silent for longer than its limit."""
    return now - progress.since > limit(progress)
