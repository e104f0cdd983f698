"""Sums of usage, and percentiles from counts by time: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.events.reward import LATENCY_EDGES_MS

LONGEST_MS = 120_000.0
"""The end of the last bucket, for reading a percentile within it."""


@dataclass
class Usage:
    """Sums over any rows."""

    calls: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    cache_hits: int = 0
    deduplicated: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    latency: list[int] = field(default_factory=list)


def percentile(counts: Sequence[int], share: float) -> float | None:
    """Return the time (ms) below which `share` of the calls lie, by straight lines within the buckets; None without calls."""
    total = sum(counts)
    if total == 0:
        return None
    wanted, seen, low = share * total, 0, 0.0
    for count, high in zip(counts, (*LATENCY_EDGES_MS, LONGEST_MS), strict=False):
        if count and seen + count >= wanted:
            return low + (high - low) * max(0.0, wanted - seen) / count
        seen, low = seen + count, float(high)
    return low
