"""When a checkpoint may be told: once all metrics in front of it are in their stream, so that nobody goes on behind a hole in the curve.

The scheduler moves a job to the newest checkpoint that it knows, and what the attempt before it said later is not stored any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PATIENCE_SECONDS = 30.0
"""So long, while the broker answers, a checkpoint waits for metrics that are behind or refused; then it goes before them."""
SILENCE_SECONDS = 10.0
"""A longer time without any answer is a cut: it ends no wait, and after it the patience begins anew."""


@dataclass(frozen=True, slots=True)
class Answers:
    """When the broker answered last, and since when it has done so without a cut; seconds of the boot clock."""

    last: float
    since: float

    def heard(self, now: float) -> Answers:
        """Return this after one more answer."""
        return Answers(now, now if now - self.last > SILENCE_SECONDS else self.since)

    def lasting(self, now: float, start: float) -> float:
        """Return for how many seconds answers have come since `start`; 0 where they do not come now."""
        if now - self.last > SILENCE_SECONDS:
            return 0.0
        return max(0.0, now - max(start, self.since))


@dataclass(frozen=True, slots=True)
class Hold:
    """A checkpoint waits for what stands in front of byte `source`, since `since`."""

    source: int
    since: float


def leaving(
    sources: Sequence[int], sent: int | None, hold: Hold | None, answers: Answers, now: float
) -> tuple[int, Hold | None]:
    """Return how many of the next facts may go out, and the hold from now on.

    `sources`: for each of them the byte of the trainer's file behind its checkpoint, 0 for every other fact. `sent`: the byte up to
    which the metrics of that file are acknowledged; None where nothing waits. One whose patience is over goes, and so do those behind it
    until the metrics have come as far as that one.
    """
    if hold is not None and (sent is None or sent >= hold.source):
        hold = None
    first = next((n for n, s in enumerate(sources) if sent is not None and s > sent), None)
    if first is None:
        return len(sources), hold
    hold = hold or Hold(sources[first], now)
    if answers.lasting(now, hold.since) >= PATIENCE_SECONDS:
        return len(sources), hold
    return first, hold
