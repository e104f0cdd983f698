"""Committed frames on their way to clients: one bounded queue each, so that a slow one delays nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.api.telemetry.frames import Frame

QUEUE_LIMIT = 256
_KEPT = frozenset({"status", "checkpoint"})
"""Rare frames that tell what happened; they survive an overflow while there is room."""


def slow_client_gap(from_seq: int, to_seq: int, time: float) -> Frame:
    """Return the frame that stands for frames which a slow client was spared."""
    data = {"reason": "slow_client", "from_seq": from_seq, "to_seq": to_seq}
    return Frame(to_seq, "gap", time, data)


def first_seq(frame: Frame) -> int:
    """Return the first number that a queued frame stands for."""
    is_drop = frame.type == "gap" and frame.data.get("reason") == "slow_client"
    return int(frame.data["from_seq"]) if is_drop else frame.seq


def compressed(frames: Sequence[Frame], limit: int) -> list[Frame]:
    """Return at most `limit` entries: droppable runs become gaps, status and checkpoint frames stay if they fit."""
    merged: list[Frame] = []
    is_gap: list[bool] = []
    for frame in frames:
        if frame.type in _KEPT or frame.data.get("reason") == "missing_data":
            merged.append(frame)
            is_gap.append(False)
        elif merged and is_gap[-1]:
            merged[-1] = slow_client_gap(first_seq(merged[-1]), frame.seq, frame.time)
        else:
            merged.append(slow_client_gap(first_seq(frame), frame.seq, frame.time))
            is_gap.append(True)
    if len(merged) <= limit:
        return merged
    last = merged.pop()
    return [slow_client_gap(first_seq(merged[0]), merged[-1].seq, merged[-1].time), last]


class Subscription:
    """The queue of one client."""

    def __init__(self, limit: int = QUEUE_LIMIT) -> None:
        """Hold at most `limit` entries."""
        self._limit = limit
        self._entries: list[Frame] = []
        self._wake = asyncio.Event()
        self.overflowed = False
        """Since the queue was last empty."""

    def put(self, frame: Frame) -> None:
        """Queue a frame; a full queue is compressed to half its size or less."""
        if len(self._entries) >= self._limit:
            self._entries = compressed(self._entries, self._limit // 2)
            self.overflowed = True
        self._entries.append(frame)
        self._wake.set()

    def clear(self) -> None:
        """Forget what is queued: the caller reads it from the database."""
        self._entries.clear()
        self.overflowed = False

    def take(self) -> list[Frame]:
        """Return what is queued, oldest first, and empty the queue."""
        entries, self._entries = self._entries, []
        return entries

    async def wait(self) -> None:
        """Return once something is queued."""
        while not self._entries:
            self._wake.clear()
            await self._wake.wait()

    def caught_up(self) -> None:
        """Note that everything taken was sent."""
        if not self._entries:
            self.overflowed = False


class Hub:
    """Hands the frames of a job to those who watch it; never waits."""

    def __init__(self) -> None:
        """Start without watchers."""
        self._watchers: dict[str, set[Subscription]] = {}

    def subscribe(self, job: str) -> Subscription:
        """Start to watch a job."""
        subscription = Subscription()
        self._watchers.setdefault(job, set()).add(subscription)
        return subscription

    def unsubscribe(self, job: str, subscription: Subscription) -> None:
        """Stop watching."""
        watchers = self._watchers.get(job, set())
        watchers.discard(subscription)
        if not watchers:
            self._watchers.pop(job, None)

    def wants(self, job: str) -> bool:
        """Tell whether anybody watches this job."""
        return job in self._watchers

    @property
    def watchers(self) -> int:
        """Return how many clients there are."""
        return sum(len(s) for s in self._watchers.values())

    def publish(self, job: str, frames: Sequence[Frame]) -> None:
        """Queue committed frames, in order, for every watcher of the job."""
        for subscription in self._watchers.get(job, ()):
            for frame in frames:
                subscription.put(frame)
