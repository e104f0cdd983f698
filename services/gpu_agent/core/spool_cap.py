"""Which logs give way when a host holds more unconfirmed data than it may: never metrics, facts or samples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

HOST_CAP_BYTES = 1 << 30
"""What all spools of a host may hold until the api has confirmed it."""
_AFTER = 0.875
"""Part of the cap that is left when logs have given way, so that this does not come again at once."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Held:
    """What one attempt keeps on this host until the api has it, in bytes."""

    log: int
    """Of its log."""
    droppable: int
    """Of that, what may still be given up: not read yet, and of a run that goes on."""
    other: int
    """Metrics, samples, system samples and facts."""


def to_drop(
    held: Sequence[tuple[Key, Held]], cap: int = HOST_CAP_BYTES
) -> tuple[tuple[Key, int], ...]:
    """Return how many bytes of which logs are to go, the largest first; nothing while the host is within `cap`."""
    total = sum(one.log + one.other for _, one in held)
    if total <= cap:
        return ()
    over = total - int(cap * _AFTER)
    found = []
    for key, one in sorted(held, key=lambda pair: -pair[1].droppable):
        taken = min(one.droppable, over)
        if taken <= 0:
            break
        found.append((key, taken))
        over -= taken
    return tuple(found)
