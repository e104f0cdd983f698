"""One line of the page, and how figures are written in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A figure beside its baseline; all but `met` are words for the table."""

    what: str
    ours: str
    baseline: str
    """The same thing done without Trainyard, in the same run; "—" where there is no such thing."""
    ratio: str
    """Ours over the baseline, and which way is better where that is not plain."""
    goal: str
    met: bool | None
    """None: there is no goal."""
    note: str
    """How it was measured, what the baseline is, what others publish."""


def percentile(values: Sequence[float], part: float) -> float:
    """Return the nearest-rank percentile; `part` is 0.95 for p95. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * part) - 1)]


def milliseconds(values: Sequence[float]) -> str:
    """Return median, p95 and maximum of seconds, in words."""
    p50, p95 = percentile(values, 0.5) * 1e3, percentile(values, 0.95) * 1e3
    return f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, max {max(values) * 1e3:.0f} ms (n={len(values)})"


def seconds(values: Sequence[float]) -> str:
    """Return median, p95 and maximum of seconds, in words."""
    p50, p95 = percentile(values, 0.5), percentile(values, 0.95)
    return f"p50 {p50:.2f} s, p95 {p95:.2f} s, max {max(values):.2f} s (n={len(values)})"
