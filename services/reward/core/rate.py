"""How fast a provider may be asked: requests and tokens a second, told or found out.

Pure: every function takes the time (seconds of one clock) and returns a new state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

TOLD_SHARE: Final = 0.96
"""Of a told limit: the provider counts in windows of its own, and others may share the account."""
BURST_SECONDS: Final = 0.04
"""How far a provider may be ahead of its even pace: limits are enforced per second too."""
FIRST_RATE: Final = 10.0
LOWEST_RATE: Final = 0.2
HIGHEST_RATE: Final = 2000.0
CUT: Final = 0.85
BURST_CUT: Final = 0.5
DEAF_SECONDS: Final = 1.0
"""After a cut, refusals of calls that were sent before it say nothing new."""
DOUBLING_SECONDS: Final = 1.0
"""How long the pace takes to double while no limit has been met."""
NEAR: Final = 0.9
CAREFUL_GROWTH: Final = 0.01
QUICK_GROWTH: Final = 0.2
"""Growth a second near the pace at which it was refused last, and well below it."""
FORGET_SECONDS: Final = 60.0
"""A limit met longer ago than this may have been raised."""
HOLD_FROM_SECONDS: Final = 5.0
"""A Retry-After this long holds for all calls; a shorter one only for the call that was refused."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`rate` in requests a second. `told`: the limit, where the administrator gave one; else it is found out."""

    rate: float
    told: float | None = None
    tokens: float | None = None
    """Tokens a second."""
    next_request: float = 0.0
    next_token: float = 0.0
    ceiling: float | None = None
    """The pace at which it was refused last."""
    cut_at: float = float("-inf")
    grown_at: float | None = None


def told(rpm: float | None, tpm: float | None) -> Rate:
    """Return the start for limits a minute; None where they are not known."""
    tokens = None if tpm is None else tpm / 60 * TOLD_SHARE
    if rpm is None:
        return Rate(FIRST_RATE, None, tokens)
    limit = rpm / 60 * TOLD_SHARE
    return Rate(limit, limit, tokens)


def reserve(state: Rate, now: float, tokens: int) -> tuple[Rate, float]:
    """Take a place in the queue; return the new state and how long to wait (seconds) before sending.

    The virtual scheduling of the generic cell rate algorithm (ITU-T I.371), once for requests and once for tokens.
    """
    slack = BURST_SECONDS
    request = max(state.next_request, now - slack)
    wait = max(0.0, request - now)
    state = replace(state, next_request=request + 1 / state.rate)
    if state.tokens is not None:
        token = max(state.next_token, now - slack)
        wait = max(wait, token - now)
        state = replace(state, next_token=token + tokens / state.tokens)
    return state, wait


def settle(state: Rate, estimated: int, used: int) -> Rate:
    """Correct the tokens of a call by what the provider counted."""
    if state.tokens is None:
        return state
    return replace(state, next_token=state.next_token + (used - estimated) / state.tokens)


def succeeded(state: Rate, now: float, *, pressed: bool) -> Rate:
    """Grow after an answer, where calls wait for the pace (`pressed`); a told limit is not exceeded."""
    since = now - (state.grown_at if state.grown_at is not None else now)
    state = replace(state, grown_at=now)
    if not pressed or now - state.cut_at < DEAF_SECONDS:
        return state
    ceiling = state.ceiling if now - state.cut_at < FORGET_SECONDS else None
    if ceiling is None:
        grown = state.rate * 2 ** (since / DOUBLING_SECONDS)
    else:
        growth = CAREFUL_GROWTH if state.rate >= NEAR * ceiling else QUICK_GROWTH
        grown = state.rate * (1 + growth * since)
    limit = state.told if state.told is not None else HIGHEST_RATE
    return replace(state, rate=min(grown, limit), ceiling=ceiling)


def refused(state: Rate, now: float, *, burst: bool = False) -> Rate:
    """Slow down after a refusal for its rate; the refusals of one moment count once."""
    if now - state.cut_at < DEAF_SECONDS:
        return state
    rate = max(LOWEST_RATE, state.rate * (BURST_CUT if burst else CUT))
    # those who wait were placed at the old pace: the queue starts anew at the new one
    return replace(
        state, rate=rate, ceiling=state.rate, cut_at=now, grown_at=now, next_request=max(state.next_request, now)
    )  # fmt: skip


def hold(state: Rate, now: float, seconds: float) -> Rate:
    """Send nothing for a while: the provider asked for it."""
    return replace(state, next_request=max(state.next_request, now + seconds))
