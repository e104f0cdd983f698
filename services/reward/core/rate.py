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
DEEPEST_CUT: Final = 0.5
BURST_CUT: Final = 0.5
WINDOW_SECONDS: Final = 1.0
WINDOW_CALLS: Final = 10
"""Over so long, and so many calls at least, the share of refused ones is judged."""
NOISE_WINDOWS: Final = 7
MOST_NOISE: Final = 0.05
"""A steady share up to this is taken for chance; more would let it rest above a real limit."""
DOUBLING_SECONDS: Final = 1.0
"""How long the pace takes to double while no limit has been met."""
GROWTH: Final = 0.05
FASTEST_GROWTH: Final = 0.5
"""Growth a second for each second since the last cut, and its most: careful at first, bold where nothing happens."""
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
    cut_at: float | None = None
    """When it was slowed down last; None while no limit has been met."""
    grown_at: float | None = None
    window_at: float = 0.0
    asked: int = 0
    lost: int = 0
    """Calls answered since `window_at`, and refused ones among them."""
    shares: tuple[float, ...] = ()
    """Shares of refused calls in the last windows."""


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
    state = _judged(replace(state, grown_at=now, asked=state.asked + 1), now)
    if not pressed:
        return state
    if state.cut_at is None or now - state.cut_at > FORGET_SECONDS:
        grown = state.rate * 2 ** (since / DOUBLING_SECONDS)
    else:
        grown = state.rate * (1 + since * min(FASTEST_GROWTH, GROWTH * (now - state.cut_at)))
    limit = state.told if state.told is not None else HIGHEST_RATE
    return replace(state, rate=min(grown, limit))


def refused(state: Rate, now: float, *, burst: bool = False) -> Rate:
    """Count a refusal for its rate, and slow down by the share of them; at once where the rate rose too quickly.

    What a provider lets through tells its limit: at `rate` r and limit L the share 1-L/r is refused, so r times what was
    let through is L. A cut by a fixed factor would fall far below it, and for ever where a few are refused by chance.
    """
    state = replace(state, asked=state.asked + 1, lost=state.lost + 1)
    if burst and (state.cut_at is None or now - state.cut_at >= WINDOW_SECONDS):
        return _cut(state, now, BURST_CUT)
    return _judged(state, now)


def _judged(state: Rate, now: float) -> Rate:
    if state.asked == 1:
        state = replace(state, window_at=now)
    over = now - state.window_at >= WINDOW_SECONDS and state.asked >= WINDOW_CALLS
    first = state.cut_at is None and state.lost >= WINDOW_CALLS
    if not over and not first:
        return state
    share = state.lost / state.asked
    excess = share - _noise(state.shares)
    state = replace(state, shares=(*state.shares, share)[-NOISE_WINDOWS:])
    if excess <= 0:
        return replace(state, asked=0, lost=0)
    return _cut(state, now, max(DEEPEST_CUT, 1 - excess))


def _noise(shares: tuple[float, ...]) -> float:
    """Return the share that is refused whatever the pace: slowing down for it would only lose time.

    At a limit some windows are free of refusals, so that the median is 0; where most are not, they do not come from it.
    """
    if len(shares) < NOISE_WINDOWS:
        return 0.0
    return min(MOST_NOISE, sorted(shares)[NOISE_WINDOWS // 2])


def _cut(state: Rate, now: float, factor: float) -> Rate:
    rate = max(LOWEST_RATE, state.rate * factor)
    return replace(state, rate=rate, cut_at=now, grown_at=now, asked=0, lost=0)


def hold(state: Rate, now: float, seconds: float) -> Rate:
    """Send nothing for a while: the provider asked for it."""
    return replace(state, next_request=max(state.next_request, now + seconds))
