"""When the embedded broker is started again: a stream that met a full disk refuses every write until then. Pure.

nats-server 2.15 keeps the first write error of a stream for ever (reliability.md finding 4): publishing times out
without an answer, also once there is room. Its health check names such streams, and a restart heals them without loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shared.disk.levels import Level

EVERY_SECONDS = 2.0
SICK_LOOKS = 2
"""Looks in a row that must find it ill: one may have come in the middle of a start."""
CALM_SECONDS = 20.0
"""Least time between two restarts; it doubles with each that did not help, up to CALM_LAST_SECONDS."""
CALM_LAST_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found."""

    at: float
    """Seconds of a clock that only goes on."""
    answered: bool
    """A broker that is away or busy is no business of this watch: its supervisor starts what has ended."""
    trouble: str | None = None
    """What its health check says is wrong, or None."""
    level: Level = Level.OK
    """Of the volume of its store."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What is remembered between looks."""

    sick: int = 0
    restarts: int = 0
    """In a row, without a healthy look between them."""
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do now, and what to remember."""

    watch: Watch
    restart: bool = False


def decide(watch: Watch, look: Look) -> Verdict:
    """Return whether to start the broker again now."""
    if not look.answered:
        return Verdict(watch)
    if look.trouble is None:
        return Verdict(replace(watch, sick=0, restarts=0))
    watch = replace(watch, sick=min(watch.sick + 1, SICK_LOOKS))
    # On a full volume a restart would meet the same error, and might find its own files unwritable.
    if look.level is Level.FULL or watch.sick < SICK_LOOKS or look.at < watch.not_before:
        return Verdict(watch)
    calm = min(CALM_SECONDS * 2**watch.restarts, CALM_LAST_SECONDS)
    return Verdict(Watch(0, watch.restarts + 1, look.at + calm), restart=True)
