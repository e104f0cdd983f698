"""When a service that died is started again: pure back-off."""

from __future__ import annotations

FIRST_SECONDS = 0.2
CAP_SECONDS = 10.0
CALM_SECONDS = 60.0
"""A service that lived this long is no longer counted as failing."""


def next_delay(
    failures: int, lived_seconds: float, cap_seconds: float = CAP_SECONDS
) -> tuple[float, int]:
    """Return seconds to wait before the restart, and the new count of failures in a row.

    The first restart is quick (a kill must not be felt), then it doubles up to `cap_seconds`.
    """
    failures = 0 if lived_seconds >= CALM_SECONDS else failures
    return min(FIRST_SECONDS * 2**failures, cap_seconds), min(failures + 1, 10)
