"""When queued items become a message: by count, by bytes, or by age."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.gpu_agent.core.numbering import Position


@dataclass(frozen=True, slots=True)
class Queued:
    """An item with its number (`position.seq`) and its size on the wire in bytes."""

    item: dict[str, Any]
    size: int
    position: Position


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one message."""

    count: int = 256
    bytes: int = 192 * 1024
    age_seconds: float = 0.0
    """A smaller batch leaves when its first item is this old; 0: at once, what comes meanwhile makes the next one."""


@dataclass(frozen=True, slots=True)
class OutBatch:
    """One message: items first_seq, first_seq + 1, …; `end` is the position after the last."""

    first_seq: int
    items: tuple[dict[str, Any], ...]
    end: Position
    first_end: int
    """The byte behind the first item, or an earlier one."""


def cut(
    queue: Sequence[Queued], limits: Limits, oldest_age: float, most: int = 8
) -> list[OutBatch]:
    """Return up to `most` messages from the head of `queue`; what stays waits for company.

    `oldest_age` is the age in seconds of the first queued item. An item above `limits.bytes` travels alone.
    """
    batches: list[OutBatch] = []
    start = 0
    while start < len(queue) and len(batches) < most:
        end = _end_of_batch(queue, start, limits)
        full = end < len(queue) or end - start >= limits.count
        if not full and oldest_age < limits.age_seconds:
            break
        taken = queue[start:end]
        batches.append(
            OutBatch(
                taken[0].position.seq,
                tuple(q.item for q in taken),
                taken[-1].position,
                taken[0].position.offset,
            )
        )
        start = end
    return batches


def _end_of_batch(queue: Sequence[Queued], start: int, limits: Limits) -> int:
    size = 0
    end = start
    while end < len(queue) and end - start < limits.count:
        size += queue[end].size
        if size > limits.bytes and end > start:
            break
        end += 1
    return end
