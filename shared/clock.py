"""Time as a dependency: shells take a Clock, cores take plain values."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall clock for people and records, boot clock for leases and deadlines."""

    def now(self) -> datetime:
        """Return the wall-clock time in UTC."""
        ...

    def boot(self) -> float:
        """Return seconds since boot, suspend included (CLOCK_BOOTTIME)."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """Return the wall-clock time in UTC."""
        return datetime.now(UTC)

    def boot(self) -> float:
        """Return seconds since boot, suspend included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


def iso(moment: datetime) -> str:
    """Return `2026-11-22T03:00:00.123Z`, the one form in which times leave the system."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_iso(text: str) -> datetime:
    """Parse what `iso` wrote. Raises ValueError on anything else."""
    return datetime.fromisoformat(text)
