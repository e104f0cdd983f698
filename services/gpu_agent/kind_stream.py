"""One kind of one attempt on its way from a file to the bus: what was read, published and confirmed, by byte offset.

The file is the queue: while the bus is away or a stream is full, nothing is held in memory beyond a bound.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.gpu_agent.core.batching import Limits, OutBatch, Queued, cut
from services.gpu_agent.core.numbering import (
    MAX_LINE,
    Decoder,
    Gap,
    Item,
    Position,
    number,
    past,
)

CHUNK = 256 * 1024
MAX_QUEUED = 2048
MAX_QUEUED_BYTES = 1024 * 1024
PATIENCE_SECONDS = 15.0
MAX_PATIENCE_SECONDS = 300.0
_MAX_MARKS = 1024
_MOST_BATCHES = 4
_NO_OFFSET = -1


class KindStream:
    """See the module. Positions: `read` ≥ `published` ≥ `confirmed`."""

    def __init__(self, kind: str, path: Path, decoder: Decoder, start: Position) -> None:
        """Begin at `start`; `restore` moves on to where an earlier agent was."""
        self.kind = kind
        self.path = path
        self.decoder = decoder
        self._start = start
        self.read = self.published = self.confirmed = start
        self.confirmed_seq = start.seq
        self.end: Position | None = None
        """Set once the run is over: nothing behind it belongs to this attempt."""
        self.gaps: tuple[Gap, ...] = ()
        self.round = 0
        """One higher with each repetition: a repeated message must not be dropped as a copy."""
        self.epoch: str | None = None
        self.retry_at = 0.0
        self.failures = 0
        self.waits_since = 0.0
        """When the last confirmation came, or the first message after it left."""
        self.patience = PATIENCE_SECONDS
        self._queue: deque[Queued] = deque()
        self._queued_bytes = 0
        self._oldest = 0.0
        self._in_flight: list[OutBatch] = []
        self._marks: deque[Position] = deque()

    # state on disk

    def dump(self) -> dict[str, Any]:
        """Return what `restore` takes."""
        return {
            "published": _dump(self.published),
            "confirmed": _dump(self.confirmed),
            "confirmed_seq": self.confirmed_seq,
            "round": self.round,
            "epoch": self.epoch,
        }

    def restore(self, stored: dict[str, Any]) -> None:
        """Go on where an earlier agent was. Raises ValueError, KeyError or TypeError for damaged state."""
        published, confirmed = _load(stored["published"]), _load(stored["confirmed"])
        self.confirmed_seq = int(stored["confirmed_seq"])
        self.round = int(stored["round"]) + 1
        self.epoch = stored.get("epoch")
        self.confirmed = confirmed
        self.read = self.published = published
        self._marks = deque([published])

    # reading

    @property
    def is_drained(self) -> bool:
        """Tell whether all up to the end is published."""
        return self.end is not None and self.published.seq >= self.end.seq

    @property
    def has_unconfirmed(self) -> bool:
        """Tell whether something published is not confirmed."""
        return self.published.seq > self.confirmed_seq

    @property
    def has_queue(self) -> bool:
        """Tell whether something is read and not published."""
        return bool(self._queue or self._in_flight)

    def backlog(self) -> int:
        """Return how many bytes wait in the file."""
        return max(0, self.limit() - self.read.offset)

    def poll(self, now: float, moment: float) -> bool:
        """Queue what was written since; tell whether anything came. `moment`: wall clock for items that bear no time."""
        if len(self._queue) >= MAX_QUEUED or self._queued_bytes >= MAX_QUEUED_BYTES:
            return False
        moved = False
        for item, position in self._next_steps(self.read):
            size = min(position.offset - self.read.offset, MAX_LINE)
            self.read = position
            moved = True
            if item is not None:
                self._enqueue(Queued(item, size, position), now, moment)
        return moved

    def drain(self) -> list[tuple[Item | None, Position]]:
        """Return the next steps and move on: for a reader that publishes nothing."""
        steps = self._next_steps(self.read)
        if steps:
            self.read = steps[-1][1]
        return steps

    def next_gap_offset(self) -> int | None:
        """Return where the next gap behind `read` begins."""
        return next((g.at.offset for g in self.gaps if g.at.offset >= self.read.offset), None)

    def find_end(self) -> Position:
        """Return the position after everything that stands in the file now, as it counts when nothing more comes."""
        here, limit = self.read, self.limit()
        while here.offset < limit:
            before = here
            for _, position in self._next_steps(here, limit=limit, closed=True):
                here = position
            if here == before:
                break
        return here

    def _next_steps(
        self, start: Position, *, limit: int | None = None, closed: bool = False
    ) -> list[tuple[Item | None, Position]]:
        """Return what the decoder makes of the next chunk behind `start`."""
        gap = next((g for g in self.gaps if g.at.offset == start.offset), None)
        if gap is not None:
            return [(gap_item(gap), past(gap))]
        stop = self.limit() if limit is None else limit
        closed = closed or self.end is not None
        later = [g.at.offset for g in self.gaps if g.at.offset > start.offset]
        stop = min([stop, *later])
        for size in (CHUNK, MAX_LINE):
            data = self._bytes(start.offset, min(size, stop - start.offset))
            if not data:
                return []
            at_end = start.offset + len(data) >= stop
            steps = list(number(data, start, self.decoder, final=closed and at_end))
            if steps or at_end:
                return steps
        return []

    def limit(self) -> int:
        if self.end is not None:
            return self.end.offset
        try:
            return os.stat(self.path).st_size  # noqa: PTH116 - called 50 times a second
        except OSError:
            return 0

    def _bytes(self, offset: int, size: int) -> bytes:
        if size <= 0:
            return b""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def _enqueue(self, one: Queued, now: float, moment: float) -> None:
        """Queue an item; its size is that of its bytes in the file, near enough to what goes on the wire."""
        if one.position.seq <= self.confirmed_seq:
            if not self._queue and not self._in_flight:
                self.published = self.confirmed = one.position
            return
        if "t" not in one.item:
            one = replace(one, item={"t": moment, **one.item})
        if not self._queue:
            self._oldest = now
        self._queue.append(one)
        self._queued_bytes += one.size

    # publishing

    def head(self) -> list[Item]:
        """Return the items that `take` may turn into messages of one item each."""
        return [self._queue[i].item for i in range(min(len(self._queue), _MOST_BATCHES))]

    def sent(self) -> int | None:
        """Return the byte up to which every item is published, however far that is; None where nothing waits."""
        if self._in_flight:
            return self._in_flight[0].first_end - 1
        if self._queue:
            return self._queue[0].position.offset - 1
        return self.read.offset if self.read.offset < self.limit() else None

    def take(self, now: float, limits: Limits, most: int = _MOST_BATCHES) -> list[OutBatch]:
        """Return the messages to publish now, in order, at most so many new ones; answer with `settle`."""
        if self._in_flight or now < self.retry_at:
            return self._in_flight if now >= self.retry_at else []
        size = min(len(self._queue), limits.count * _MOST_BATCHES)
        head = [self._queue[i] for i in range(size)]
        batches = cut(head, limits, now - self._oldest, most=most)
        for batch in batches:
            for _ in batch.items:
                self._queued_bytes -= self._queue.popleft().size
        self._oldest = now
        self._in_flight = batches
        return batches

    def settle(self, stored: Sequence[bool], now: float) -> None:
        """Take the outcome of each message that `take` returned: what did not arrive goes out again, in order."""
        if not self.has_unconfirmed:
            self.waits_since = now
        failed = next((i for i, ok in enumerate(stored) if not ok), len(self._in_flight))
        for batch in self._in_flight[:failed]:
            self._mark(batch.end)
        if any(stored[failed:]):
            self.round += (
                1  # a later one is stored already: its copy must not be dropped when it is due
            )
        self._in_flight = self._in_flight[failed:]

    def shrink_first(self) -> bool:
        """Make the first message in flight smaller, because the bus refused its size; tell whether items were kept whole."""
        if not self._in_flight:
            return True
        first = self._in_flight[0]
        self.round += 1
        if len(first.items) > 1:
            middle = len(first.items) // 2
            # the place of an item inside a batch is not kept: a restart reads the whole batch again
            inside = Position(first.first_seq + middle - 1, _NO_OFFSET)
            self._in_flight[:1] = [
                replace(first, items=first.items[:middle], end=inside),
                replace(first, first_seq=first.first_seq + middle, items=first.items[middle:]),
            ]
            return True
        item = first.items[0]
        small: Item = {k: item[k] for k in ("t", "type", "step", "level", "seq") if k in item}
        small |= {"message": "too large for the bus; see the file on the host", "dropped": True}
        self._in_flight[0] = replace(first, items=(small,))
        return False

    def _mark(self, position: Position) -> None:
        if position.offset == _NO_OFFSET:
            return
        self.published = position
        self._marks.append(position)
        if len(self._marks) > _MAX_MARKS:
            self._marks = deque(m for i, m in enumerate(self._marks) if i % 2 or m is position)

    # confirming

    def confirm(self, seq: int, now: float) -> bool:
        """Take what the api has stored; tell whether that is more than before."""
        if seq <= self.confirmed_seq:
            return False
        self.confirmed_seq = seq
        self.waits_since, self.patience = now, PATIENCE_SECONDS
        while self._marks and self._marks[0].seq <= seq:
            self.confirmed = self._marks.popleft()
        return True

    def resend_if_stuck(self, now: float) -> bool:
        """Publish again when the api, though it answers, has confirmed nothing more for too long; wait longer next time."""
        if not self.has_unconfirmed or now - self.waits_since < self.patience:
            return False
        self.rewind()
        self.waits_since = now
        self.patience = min(MAX_PATIENCE_SECONDS, self.patience * 2)
        return True

    def go_back(self, seq: int) -> bool:
        """The api has only this much, less than it had confirmed; tell whether something must go out again."""
        if seq >= self.confirmed_seq:
            return False
        self.rewind(whole=True)
        self.confirmed_seq = seq
        return True

    def rewind(self, *, whole: bool = False) -> None:
        """Publish again what is not confirmed, or (`whole`) everything."""
        if whole:
            self.confirmed = self._start
            self.confirmed_seq = 0
        self.read = self.published = self.confirmed
        self._queue.clear()
        self._queued_bytes = 0
        self._in_flight = []
        self._marks.clear()
        self.round += 1
        self.retry_at = 0.0


def gap_item(gap: Gap) -> Item:
    """Return the item that stands for a part of the log that was given up."""
    return {
        "level": "WARNING",
        "message": f"{gap.lines} log lines ({gap.bytes} bytes) were not sent: the connection was away for too long. "
        "They are in logs/train.log on the host.",
        "gap": {"lines": gap.lines, "bytes": gap.bytes},
    }


def _dump(position: Position) -> list[Any]:
    return [position.seq, position.offset, position.state]


def _load(stored: Sequence[Any]) -> Position:
    seq, offset, state = stored
    return Position(int(seq), int(offset), str(state))
