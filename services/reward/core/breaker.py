"""Stops asking a provider that does not work, and tries it again with one call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

CONSECUTIVE: Final = 5
SHARE: Final = 0.5
LEAST_CALLS: Final = 20
WINDOW_SECONDS: Final = 60.0
OPEN_SECONDS: Final = 30.0

State = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True)
class Breaker:
    """Opens after 5 failures in a row, or where half of at least 20 calls within a minute failed.

    Times in seconds of one clock. `until`: when it may be tried again, where it is open.
    """

    in_a_row: int = 0
    calls: tuple[tuple[float, bool], ...] = ()
    until: float | None = None
    probing: bool = False
    probe_at: float = 0.0


def state(breaker: Breaker, now: float) -> State:
    """Return closed, open, or half_open: one call may try it."""
    if breaker.until is None:
        return "closed"
    return "open" if now < breaker.until else "half_open"


def admit(breaker: Breaker, now: float) -> tuple[Breaker, bool]:
    """Tell whether a call may be made; of a half-open one only the first, until it is answered."""
    current = state(breaker, now)
    if current == "closed":
        return breaker, True
    if current == "open":
        return breaker, False
    # a probe that never came back must not lock the provider out for ever
    if breaker.probing and now - breaker.probe_at < WINDOW_SECONDS:
        return breaker, False
    return replace(breaker, probing=True, probe_at=now), True


def succeeded(breaker: Breaker, now: float) -> Breaker:
    """Close it after an answer."""
    if breaker.until is not None:
        return Breaker()
    return replace(breaker, in_a_row=0, calls=_recent(breaker, now, failed=False))


def failed(breaker: Breaker, now: float) -> Breaker:
    """Count a failure; open where there are too many."""
    calls = _recent(breaker, now, failed=True)
    row = breaker.in_a_row + 1
    bad = sum(f for _, f in calls)
    if (
        breaker.probing
        or row >= CONSECUTIVE
        or (len(calls) >= LEAST_CALLS and bad >= SHARE * len(calls))
    ):
        return Breaker(until=now + OPEN_SECONDS)
    return replace(breaker, in_a_row=row, calls=calls)


def shut(now: float, seconds: float) -> Breaker:
    """Return it open for a known time: the key is wrong, the quota used up."""
    return Breaker(until=now + seconds)


def _recent(breaker: Breaker, now: float, *, failed: bool) -> tuple[tuple[float, bool], ...]:
    kept = [c for c in breaker.calls[-199:] if now - c[0] < WINDOW_SECONDS]
    return (*kept, (now, failed))
