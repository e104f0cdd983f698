"""Pure rules of a run: which evaluation is the best, when to end early, when a loss is lost, how long it still takes."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from shared.specs.metrics import metric_goal

NONFINITE_STEPS = 5
"""So many steps in a row without a finite loss and gradient end the run."""

_ETA_MIN_STEPS = 10
_ETA_WINDOW = 50


def reached(metric: str, value: float, target: float) -> bool:
    """Tell whether a metric has got to its target from the worse side; NaN never has."""
    return value <= target if metric_goal(metric) == "min" else value >= target


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation so far, and for how many evaluations nothing was better."""

    metric: str
    value: float | None = None
    step: int | None = None
    without_improvement: int = 0

    def after(self, step: int, value: float) -> Best:
        """Return the standing after one more evaluation; a value that is not finite is never the best."""
        better = math.isfinite(value) and (
            self.value is None
            or (value < self.value if metric_goal(self.metric) == "min" else value > self.value)
        )
        if better:
            return replace(self, value=value, step=step, without_improvement=0)
        return replace(self, without_improvement=self.without_improvement + 1)

    def exhausted(self, patience: int | None) -> bool:
        """Tell whether `patience` evaluations in a row brought nothing better."""
        return patience is not None and self.without_improvement >= patience

    def as_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "metric": self.metric,
            "value": self.value,
            "step": self.step,
            "without_improvement": self.without_improvement,
        }

    @classmethod
    def from_json(cls, metric: str, saved: Mapping[str, Any] | None) -> Best:
        """Return the standing a checkpoint kept, or a new one where it judged by another metric."""
        if not saved or saved.get("metric") != metric:
            return cls(metric)
        return cls(
            metric, saved.get("value"), saved.get("step"), int(saved.get("without_improvement", 0))
        )


class StepTimes:
    """Times of the last 50 steps (seconds)."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_ETA_WINDOW)
        self._seen = 0

    def add(self, seconds: float) -> None:
        """Add the time of one step."""
        self._times.append(seconds)
        self._seen += 1

    def eta_seconds(self, remaining_steps: int) -> float | None:
        """Return the time that `remaining_steps` take at the median pace, or None before the 10th step."""
        if self._seen < _ETA_MIN_STEPS:
            return None
        return round(statistics.median(self._times) * max(remaining_steps, 0), 1)


class TokenRate:
    """Live tokens per second: what came since the last reading, over the time that was spent training."""

    def __init__(self, now: float, tokens: float) -> None:
        self._since = now
        self._tokens = tokens
        self._paused = 0.0

    def pause(self, seconds: float) -> None:
        """Leave out time in which nothing was trained: evaluating, saving."""
        self._paused += seconds

    def read(self, now: float, tokens: float) -> float | None:
        """Return the rate since the last reading, or None where no time has passed."""
        elapsed = now - self._since - self._paused
        rate = (tokens - self._tokens) / elapsed if elapsed > 0 else None
        self._since, self._tokens, self._paused = now, tokens, 0.0
        return rate
