"""Figures of the rewards of one step, and whether enough of them are real to go on. Pure."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

WINDOW_STEPS: Final = 50
BLANK_STEPS: Final = 5
"""So many steps in a row without a single verdict end the run, whatever the rate asked for."""


def distribution(rewards: Sequence[float | None]) -> dict[str, float]:
    """Return mean, spread (population) and the five numbers of a box plot of the rewards that are there; {} for none."""
    valid = sorted(r for r in rewards if r is not None)
    if not valid:
        return {}
    return {
        "reward": statistics.fmean(valid),
        "reward_std": statistics.pstdev(valid),
        "reward_min": valid[0],
        "reward_q25": quantile(valid, 0.25),
        "reward_median": quantile(valid, 0.5),
        "reward_q75": quantile(valid, 0.75),
        "reward_max": valid[-1],
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile of a sorted, non-empty sequence, between neighbours by straight line (type 7)."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def groups(
    names: Sequence[str], rewards: Sequence[float | None]
) -> Mapping[str, tuple[float, ...]]:
    """Return the valid rewards of each group, in order; a group without any is an empty tuple."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for name, reward in zip(names, rewards, strict=True):
        if reward is not None:
            found[name].append(reward)
    return {name: tuple(values) for name, values in found.items()}


def group_figures(
    names: Sequence[str], rewards: Sequence[float | None], *, tolerance: float = 1e-8
) -> dict[str, float]:
    """Return `group_variance` (mean population variance) and `zero_variance_rate` over groups with two verdicts or more."""
    compared = [g for g in groups(names, rewards).values() if len(g) > 1]
    if not compared:
        return {}
    variances = [statistics.pvariance(g) for g in compared]
    return {
        "group_variance": statistics.fmean(variances),
        "zero_variance_rate": sum(v <= tolerance for v in variances) / len(variances),
    }


def accuracy(rewards: Sequence[float | None], right_from: float) -> dict[str, float]:
    """Return `reward_accuracy`: the share of valid rewards of at least `right_from`; {} where there are none."""
    valid = [r for r in rewards if r is not None]
    return {"reward_accuracy": sum(r >= right_from for r in valid) / len(valid)} if valid else {}


class ValidRewards:
    """Follows how many completions get a verdict; training on too few of them is training on noise."""

    def __init__(self, at_least: float) -> None:
        """`at_least`: share from 0 to 1 over WINDOW_STEPS steps."""
        self._at_least = at_least
        self._steps: deque[tuple[int, int]] = deque(maxlen=WINDOW_STEPS)
        self._blank = 0

    def after(self, valid: int, total: int) -> bool:
        """Take one step's counts; tell whether the run must pause."""
        self._steps.append((valid, total))
        self._blank = 0 if valid else self._blank + 1
        if self.blank:
            return True
        return len(self._steps) == WINDOW_STEPS and self.rate < self._at_least

    @property
    def blank(self) -> bool:
        """Whether BLANK_STEPS steps in a row brought no verdict at all."""
        return self._blank >= BLANK_STEPS

    @property
    def rate(self) -> float:
        """Share of completions with a verdict over the window; 1 before the first step."""
        total = sum(t for _, t in self._steps)
        return sum(v for v, _ in self._steps) / total if total else 1.0
