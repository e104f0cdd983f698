"""When to try again: full jitter, the provider's own wish honoured, never beyond the deadline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.reward.core.provider_errors import Refusal

RETRIES: Final = 3
BASE_SECONDS: Final = 0.5
LONGEST_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Again:
    """Try again after `seconds`."""

    seconds: float


def after(refusal: Refusal, tried: int, draw: float, remaining: float) -> Again | None:
    """Return how long to wait before the next try, or None to give up.

    `tried`: calls made so far (1 after the first). `draw`: uniform in [0, 1). `remaining`: seconds to the deadline.
    Full jitter (Brooker, "Exponential Backoff and Jitter", 2015) spreads those who were refused together; a Retry-After is
    the least wait, with the jitter on top, so that they do not come back together either.
    """
    limit = RETRIES if refusal.retries is None else min(refusal.retries, RETRIES)
    if not refusal.retry or tried > limit:
        return None
    jitter = draw * min(LONGEST_SECONDS, BASE_SECONDS * 2 ** (tried - 1))
    seconds = jitter if refusal.retry_after is None else refusal.retry_after + jitter
    return Again(seconds) if seconds < remaining else None
